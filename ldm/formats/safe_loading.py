"""Reads tensors and plain values from untrusted files, without running code from them.

`.safetensors` files contain only data. `.ckpt`, `.pt` and `.bin` files are pickles, which may tell the reader to call
any function of any module. torch's `weights_only` unpickler calls only a short list of tensor builders. Real CompVis
files also contain Lightning's callback classes and numpy scalars: inert stubs replace these names, and the objects
they would build are dropped.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ldm.errors import UserError
from ldm.files import is_special

INERT_PREFIXES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "lightning_utilities.")
"""Packages whose classes may appear in a checkpoint; they become stubs, and nothing is imported."""

INERT_NAMES = frozenset(
    [
        "argparse.Namespace",
        "collections.defaultdict",
        "typing.Any",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "builtins.bool",
        "builtins.dict",
        "builtins.float",
        "builtins.frozenset",
        "builtins.int",
        "builtins.list",
        "builtins.str",
        "builtins.tuple",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "datetime.timezone",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.nodes.AnyNode",
    ]
)
"""Other names that training tools leave in checkpoints."""

UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
"""Errors that torch's unpickler raises for damaged or hostile bytes."""

MAX_DEPTH = 100
"""Maximum nesting of containers in a checkpoint; a run's own has 10 levels."""
MAX_VALUES = 10_000_000
"""Maximum number of values in a checkpoint, counting shared ones each time; a full-size run has about ten thousand."""


class Inert:
    """Replaces an object that is not rebuilt: accepts any arguments and state, and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a `.safetensors`, `.ckpt`, `.pt` or `.bin` file: tensors on the CPU, and plain values.

    Tensors are memory-mapped (copy on write), so a large file takes memory only where it is accessed. The file's first
    bytes decide the format, not its name. Values that only code could rebuild are left out.
    Raises `UserError`, in one line, if the file is missing, damaged, of another format or not a regular file, or has
    anything beyond tensors and plain values.
    """
    path = Path(path)
    refuse_unreadable_name(path)
    try:
        if is_special(path):
            raise UserError(f"{path} is a pipe or a device, not a file: save it to a file first")
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if head.startswith(b"PK\x03\x04"):
        return load_zip_pickle(path)
    if head[8:9] == b"{":
        return load_safetensors(path)
    raise UserError(f"{path} {what_it_is(path, head)}")


def refuse_odd_numbers(tensor: torch.Tensor, path: Path) -> None:
    """Raise UserError for a tensor of `path` that is no dense one of finite floating-point numbers."""
    is_dense = tensor.layout is torch.strided and not tensor.is_quantized
    if not is_dense or not tensor.is_floating_point() or not tensor.isfinite().all():
        raise UserError(f"{path} has values that are not finite numbers: use another file")


def refuse_unreadable_name(path: Path) -> None:
    """Raise UserError for a name that is not UTF-8, which torch and safetensors cannot open."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path} has a name that is not UTF-8: rename it") from None


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like a safetensors file: the header's length in eight bytes, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def what_it_is(path: Path, head: bytes) -> str:
    """Why a file that begins with `head` is not a checkpoint, and what to do about it."""
    if not head:
        return "is empty: copy or download it again"
    if head.startswith(b"\x80") and head[1] <= pickle.HIGHEST_PROTOCOL:
        convert = f"import torch; torch.save(torch.load('{path.name}', weights_only=True), 'converted.ckpt')"
        return f'is a pickle from before torch 1.6, which is not supported: convert it with python -c "{convert}"'
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights: fetch them with git lfs pull"
    if head.lstrip()[:1] == b"<":
        return "is a web page, not a checkpoint: download the file itself"
    return "is neither a safetensors file nor a torch checkpoint, or is damaged: copy or download it again"


def load_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, *UNREADABLE) as error:  # also for a sparse file larger than the address space
        raise UserError(
            f"{path} is damaged or cut short ({first_line(error)}): copy or download it again"
        ) from None


def load_zip_pickle(path: Path) -> dict[str, Any]:
    """The content of a torch zip file (since torch 1.6), read with torch's `weights_only` unpickler."""
    if path.suffix == ".safetensors":  # torch.load decides by the name
        raise UserError(f"{path} is a pickle with a safetensors name: rename it to .ckpt")
    refuse_compression(path)
    stubs = stubs_for(path)
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in stubs]):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UNREADABLE as error:
        raise not_loaded(path, error) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} contains a {type(content).__name__}, not a checkpoint's dictionary")
    refuse_unfolding(content, path)
    return without_stubs(content, {}) if stubs else content


def stubs_for(path: Path) -> list[str]:
    """The names in a pickle that stubs replace. Raises `UserError` for names that are not allowed."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except UNREADABLE as error:
        raise not_loaded(path, error) from None
    refused = sorted(name for name in names if not is_inert(name))
    if refused:
        raise UserError(
            f"{path} asks to run {', '.join(refused[:4])}, so it was not loaded: "
            "use a .safetensors version of it, or another source"
        )
    return names


def not_loaded(path: Path, error: Exception) -> UserError:
    """The error for a torch file that could not be read completely."""
    if isinstance(error, pickle.UnpicklingError):  # its message advises loading the file unsafely
        return UserError(
            f"{path} contains more than tensors and plain values, so it was not loaded: "
            "use a .safetensors version of it, or another source"
        )
    return UserError(
        f"{path} is damaged or not a checkpoint ({first_line(error)}): copy or download it again"
    )


def is_inert(name: str) -> bool:
    """Whether the class or function `name` may be replaced by a stub."""
    return name in INERT_NAMES or name.startswith(INERT_PREFIXES)


def refuse_compression(path: Path) -> None:
    """Raise UserError for compressed records: torch writes none, so they are a decompression bomb or a foreign file."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist())
    except (zipfile.BadZipFile, *UNREADABLE) as error:
        raise not_loaded(path, error) from None
    if packed:
        raise UserError(f"{path} is a compressed archive, not a torch checkpoint: unpack it first")


def refuse_unfolding(content: dict[str, Any], path: Path) -> None:
    """Raise UserError for containers that contain themselves, nest too deep, or expand to too many values.

    A kilobyte of lists that each contain the previous one twice expands to 2^60 values, and walking, comparing or
    printing them never ends.
    """
    try:
        extent(content, {}, 0)
    except OverflowError as error:
        raise UserError(
            f"{path} has containers that {error}, so it was not loaded: use another source"
        ) from None


def extent(value: object, known: dict[int, tuple[int, int] | None], level: int) -> tuple[int, int]:
    """How many values `value` expands to, and how deep they nest. Raises OverflowError beyond the bounds.

    known: results by identity, so that each container is measured once; None while it is measured.
    """
    if not isinstance(value, (dict, list, tuple, set, frozenset)):
        return 1, 0
    if id(value) not in known:
        if level > MAX_DEPTH:
            raise OverflowError("nest too deep")
        known[id(value)] = None
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        extents = [extent(item, known, level + 1) for item in items]
        count = 1 + sum(values for values, _ in extents)
        depth = 1 + max((depth for _, depth in extents), default=0)
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise OverflowError("nest too deep" if depth > MAX_DEPTH else "expand to too many values")
        known[id(value)] = count, depth
    found = known[id(value)]
    if found is None:
        raise OverflowError("contain themselves")
    return found


def without_stubs(value: Any, done: dict[int, Any]) -> Any:
    """`value` with all stubs removed from its dictionaries, lists and tuples.

    done: results by identity, so that containers shared in `value` are shared in the result.
    """
    if not (isinstance(value, dict) or type(value) in (list, tuple)):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            items = {key: item for key, item in value.items() if not (is_stub(key) or is_stub(item))}
            done[id(value)] = {key: without_stubs(item, done) for key, item in items.items()}
        else:
            done[id(value)] = type(value)(without_stubs(item, done) for item in value if not is_stub(item))
    return done[id(value)]


def is_stub(value: object) -> bool:
    """Whether `value` is the stub class or an instance of it."""
    return value is Inert or isinstance(value, Inert)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
