"""WUDI's problem solved exactly: the pseudo-inverse of the interference operator, f = 1 on its range."""

from __future__ import annotations

from ..filters import no_filter
from ..interference.family import AnchorParameters, InterferenceMethod, factors_on_top, resolved_directions
from ..spectrum import Factors, Spectrum


class WudiPinv(InterferenceMethod[AnchorParameters]):
    name = "wudi_pinv"
    summary = "WUDI's least-squares solution: no interference where the experts' ranks leave room for it"
    source = "arXiv:2503.08099, solved as in arXiv:2606.07289"
    Parameters = AnchorParameters

    def factors(self, spectrum: Spectrum, parameters: AnchorParameters) -> Factors:
        chosen = no_filter(spectrum.values, resolved_directions(spectrum))
        return factors_on_top(spectrum, chosen, spectrum.shape[1], parameters.anchor, parameters.scale)
