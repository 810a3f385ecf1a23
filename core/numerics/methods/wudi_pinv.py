"""WUDI's least-squares problem solved exactly by the pseudo-inverse of the interference operator."""

from __future__ import annotations

from ..apply_filter import Factors
from ..filters import no_filter
from ..interference.wudi_family import AnchorParameters, InterferenceMethod, factors_of_filter, resolved_directions
from ..spectrum import Spectrum


class WudiPinv(InterferenceMethod[AnchorParameters]):
    """theta_0 + (D - theta_0 C) pinv(C): filter 1 on the range of C, the anchor theta_0 elsewhere.

    C = sum_i w_i v_i^T v_i, D = sum_i w_i v_i v_i^T v_i, w_i = 1/||v_i||_F^2.

    References
    ----------
    WUDI-Merging, arXiv:2503.08099; SWUDI, arXiv:2606.07289
    """

    name = "wudi_pinv"
    summary = "WUDI's least-squares solution: no interference where the experts' ranks add up to at most D2"
    source = "arXiv:2503.08099, solved as in arXiv:2606.07289"
    Parameters = AnchorParameters

    def needs_float64(self, parameters: AnchorParameters) -> bool:
        return True

    def factors(self, spectrum: Spectrum, parameters: AnchorParameters) -> Factors:
        chosen = no_filter(spectrum.values, resolved_directions(spectrum))
        return factors_of_filter(spectrum, chosen, spectrum.shape[1], parameters.anchor, parameters.scale)
