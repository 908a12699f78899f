"""Weight files of published networks: fetched, checked, and told apart by what they hold."""

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

ADVICE = "download it again, as a file and not as a page"
NO_WEIGHTS = {
    b"<": f"an HTML or XML page, no weights; {ADVICE}",
    b"version https://git-lfs": "a Git LFS pointer, no weights; run `git lfs pull`",
}


class Published(NamedTuple):
    """A file that its authors offer for download; what is None is not known."""

    what: str
    url: str
    sha256: str | None = None
    size: int | None = None  # bytes

    def advice(self) -> str:
        """What to download, and by what to know it."""
        size = f"{self.size:,} bytes" if self.size else "of unknown size"
        known = f"SHA-256 {self.sha256}" if self.sha256 else "its SHA-256 is not known to us"
        return f"{self.what}: {self.url} ({size}, {known})"


def fetch(source: str | Path, sha256: str | None, offers: tuple[Published, ...] = ()) -> Path:
    """The local file of weights, downloaded once if ``source`` is a URL.

    Downloads are kept in torch's hub folder (``$TORCH_HOME/hub/checkpoints``).

    Args:
        source: A path, or a URL (http, https, file), which may end in ``#sha256=HASH``.
        sha256: What the file must be; a URL needs it, here or there, unless ``offers`` know it.
        offers: The files that would do, for the message if there is none.

    Raises:
        ValueError: If there is no such file, or it is another one than ``sha256`` says; tells
            what to download, where to put it, and which hash it has.
    """
    if "://" in str(source):
        known = {offer.url: offer.sha256 for offer in offers}
        url, _, pinned = str(source).partition("#sha256=")
        path = _downloaded(url, sha256 or pinned or known.get(url))
    else:
        path = Path(source)
        if not path.is_file():
            could = "".join(f"\n  {offer.advice()}" for offer in offers)
            raise ValueError(
                f"{path}: no such file; download one of these and put it there:{could}"
            )
        if sha256 and (found := digest(path)) != sha256.lower():
            raise ValueError(
                f"{path}: its SHA-256 is {found}, but {sha256} was asked for; it is another file, "
                "or damaged: download it again, or ask for the hash of the one you mean"
            )
    _sniff(path)
    return path


def digest(path: str | Path) -> str:
    """SHA-256 of a file, for manifests too."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def origin(source: str | Path) -> str:
    """What a report says of weights: the hash of a file or URL, which tells not where it is.

    A URL without one in it stays as it is, and so does a tag.
    """
    if (path := Path(source)).is_file():
        return f"sha256:{digest(path)}"
    _, pinned, sha256 = str(source).partition("#sha256=")
    return f"sha256:{sha256.lower()}" if pinned else str(source)


def read_weights(path: Path) -> torch.jit.ScriptModule | dict[str, Tensor]:
    """A TorchScript program, or a state dict from torch or safetensors.

    Nothing is unpickled but tensors. A TorchScript program is code, though in a language of its
    own: give its hash where its origin matters.

    Raises:
        ValueError: If it is neither.
    """
    try:
        if is_script(path):
            with warnings.catch_warnings():  # torch advises against a format that is not ours
                warnings.simplefilter("ignore", FutureWarning)
                return torch.jit.load(path, map_location="cpu")
        found: Any
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, SafetensorError, EOFError) as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ValueError(
            f"{path}: neither a TorchScript program nor a state dict of torch or safetensors "
            f"({reason})"
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]  # of a training checkpoint
    if not isinstance(found, Mapping) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ValueError(f"{path}: a {type(found).__name__}, where a state dict is needed")
    return dict(found)


def fill(network: nn.Module, weights: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Load a state dict; counters of batches, which older files lack, do not matter.

    Raises:
        ValueError: If names or shapes are not the network's; names some of them.
    """
    counters = "num_batches_tracked"
    needed = {k: v.shape for k, v in network.state_dict().items() if not k.endswith(counters)}
    given = {k: v.shape for k, v in weights.items() if not k.endswith(counters)}
    if wrong := [k for k in needed.keys() | given.keys() if needed.get(k) != given.get(k)]:
        told = ", ".join(
            f"{k} (needed {_shape(needed.get(k))}, found {_shape(given.get(k))})"
            for k in sorted(wrong)[:3]
        )
        raise ValueError(
            f"{source}: not the weights of {type(network).__name__}: {len(wrong)} "
            f"names or shapes differ: {told}"
        )
    network.load_state_dict({k: weights[k] for k in needed}, strict=False)


def _downloaded(url: str, sha256: str | None) -> Path:
    if not sha256:
        raise ValueError(
            f"{url}: give the SHA-256 of the file too, as {url}#sha256=HASH: scores depend on it, "
            "and what lies behind a URL may change"
        )
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / f"{sha256.lower()[:12]}-{Path(urlparse(url).path).name}"
    if path.is_file() and digest(path) == sha256.lower():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    try:  # written beside, checked, then moved there
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256.lower())
    except (URLError, OSError, ValueError) as error:
        raise ValueError(
            f"{url}: cannot be downloaded ({error}); put the file somewhere and give its path"
        ) from error
    except RuntimeError as error:  # of torch's own check
        raise ValueError(f"{url}: another file lies there by now: {error}") from error
    return path


def _sniff(path: Path) -> None:
    with open(path, "rb") as file:
        head = file.read(64).lstrip()
    if not head:
        raise ValueError(f"{path}: the file is empty")
    for start, reason in NO_WEIGHTS.items():
        if head.startswith(start):
            raise ValueError(f"{path}: {reason}")


def is_script(path: Path) -> bool:
    """Whether a file is a TorchScript program."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape)) or "a number"
