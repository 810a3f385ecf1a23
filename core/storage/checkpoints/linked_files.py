"""Check that the small files of a model, which go to the output as they are, are files of this model.

A downloaded folder may have tokenizer_config.json as a link to ~/.aws/credentials, whose content would be published
with the merged model. Weights may be links to any disk: they are parsed as safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ...errors import CheckpointError
from ...formats.file_names import CONFIG_NAME
from ...listing import ModelListing
from ..addresses import absolute_uri, is_local


def check_linked_files(listings: Iterable[ModelListing], uris: Iterable[str], reference: ModelListing) -> None:
    """Check files that are copied, and the config of the reference model, which is the base of the output's.

    Links within the folder of the model, and from a snapshot of the Hub's cache to its blobs, are allowed.

    Parameters
    ----------
    listings : the models that the files may belong to
    uris : addresses of side files of these models; remote ones have no links

    Raises
    ------
    CheckpointError : a file is a link to a place outside of the model
    """
    wanted = {uri for uri in uris if is_local(uri)}
    for listing in listings:
        if is_local(listing.uri):
            for uri in wanted.intersection(listing.side_files.values()):
                _check(listing, Path(absolute_uri(uri)))
    if is_local(reference.uri) and reference.config is not None:
        _check(reference, _folder(reference.uri) / CONFIG_NAME)


def check_links_resolve(uri: str, is_used: Callable[[str], bool]) -> None:
    """Check that no file which a model needs is a link to nothing, such as a half removed cache of the Hub has.

    Without this check the merge would lack that file, as if the model had none.

    Parameters
    ----------
    uri : address of a local folder, or of a file in it
    is_used : whether a file of this name belongs to a model

    Raises
    ------
    CheckpointError : a link whose target does not exist
    """
    for path in sorted(_folder(uri).iterdir()):
        if path.is_symlink() and is_used(path.name) and not path.exists():
            raise CheckpointError(
                f"{path} is a link to {path.readlink()}, which does not exist; download the model again, or remove the"
                " link"
            )


def _check(listing: ModelListing, path: Path) -> None:
    folder = _folder(listing.uri)
    if listing.adapter is not None and not path.is_relative_to(folder):  # a tokenizer that comes with the adapter
        folder = _folder(listing.adapter.uri)
    if not path.is_relative_to(folder):  # a result that is only planned: the model that has the file is checked
        return
    target = path.resolve()
    allowed = [folder.resolve()]
    if allowed[0].parent.name == "snapshots":  # models--owner--name/snapshots/<commit>
        allowed.append(allowed[0].parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise CheckpointError(
            f"{path} is a link to {target}, outside of the model {listing.name}; a merge copies this file to its"
            " output: put a copy of the right file into the folder of the model"
        )


def _folder(uri: str) -> Path:
    path = Path(absolute_uri(uri))
    return path if path.is_dir() else path.parent
