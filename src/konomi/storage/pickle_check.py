"""Read what a pickled PyTorch file *would* build, without building it.

torch.load(weights_only=True) runs no foreign code, but a few bytes can still make it allocate
terabytes (a storage of 10^12 numbers, `bytearray(10**12)`), write a patch file, or overflow the
stack by hashing deeply nested keys. So the opcodes are followed here first, with inert stand-ins
for every value, and only what a model file needs is let through.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"
"""The one class allowed beyond tensors and plain containers: Textual Inversion files of 2022 hold
it."""

LIGHTNING_CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
"""Allowed as a mere dictionary key: the first Stable Diffusion checkpoints name their trainer's
callback so."""

_ELEMENT_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1,
    "Byte": 1,
    "Bool": 1, "Untyped": 1,
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": size for name, size in _ELEMENT_BYTES.items()}
_STORAGES |= {f"torch.cuda.{name}Storage": size for name, size in _ELEMENT_BYTES.items()}
_STORAGES["torch.storage.UntypedStorage"] = 1
_DTYPES = {f"torch.{name}": size for name, size in {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2,
    "int8": 1, "uint8": 1,
    "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
}.items()}  # fmt: skip
_CALLS = (
    "collections.OrderedDict", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter", "torch.Size",
    "torch.device",
    "_codecs.encode", "builtins.set",
)  # fmt: skip
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_MAX_AMPLIFICATION = 8
"""How many times larger all tensors together may be than the storages they share (tied weights
share legitimately)."""


class ForbiddenError(Exception):
    """The pickle asks for something a model file does not need. The message names it."""


@dataclass(slots=True)
class Storage:
    """A block of numbers that a file declares."""

    key: str
    count: int
    element_bytes: int

    @property
    def size(self) -> int:
        return self.count * self.element_bytes


@dataclass(slots=True)
class Shape:
    """Stands for a tensor."""

    sizes: tuple[int, ...]


@dataclass(slots=True, frozen=True)
class Global:
    """Stands for a class or function; never imported."""

    name: str


@dataclass(slots=True)
class ParameterBox:
    """Stands for a ParameterDict."""

    state: Any = None


@dataclass(slots=True)
class Findings:
    """What a pickle declares."""

    value: Any = None
    storages: dict[str, Storage] = field(default_factory=dict)
    viewed_bytes: int = 0
    boxes: int = 0
    names_callback: bool = False

    @property
    def storage_bytes(self) -> int:
        return sum(storage.size for storage in self.storages.values())

    @property
    def uses_parameter_dict(self) -> bool:
        return self.boxes > 0


def examine(file: IO[bytes]) -> Findings:
    """Follow one pickle to its STOP. Raises ForbiddenError for anything unneeded, ValueError for a
    damaged pickle.
    """
    reader = _Reader()
    with warnings.catch_warnings():
        # The library remarks on odd escapes in a stranger's strings; whoever made warnings errors
        # meant their own code.
        warnings.simplefilter("ignore", DeprecationWarning)
        for opcode, argument, _ in pickletools.genops(file):
            try:
                if opcode.name == "STOP":
                    reader.findings.value = reader.stack.pop()
                    return _checked(reader.findings)
                reader.step(opcode.name, argument)
            except (IndexError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{opcode.name} does not fit what precedes it") from error
    raise ValueError("no STOP")


def _checked(findings: Findings) -> Findings:
    if findings.viewed_bytes > _MAX_AMPLIFICATION * findings.storage_bytes + 4096:
        raise ForbiddenError("tensors that are many times larger than the data behind them")
    if findings.boxes:
        value = findings.value
        held = value.get("string_to_param") if isinstance(value, dict) else None
        if findings.boxes > 1 or not isinstance(held, ParameterBox):
            raise ForbiddenError(PARAMETER_DICT)
    return findings


class _Reader:
    """The stack machine. Only the opcodes that torch's own safe reader knows, too."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name != "PROTO":
            raise ForbiddenError(f"the pickle operation {name}")

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def tuple_of(self, count: int | None) -> None:
        if count is None:
            items = self.pop_mark()
        else:
            items = self.stack[-count:]
            if len(items) != count:
                raise ValueError("the stack is too short")
            del self.stack[-count:]
        self.stack.append(tuple(items))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("items appended to something that is not a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("items set in something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, str | int | float | bytes | None) and key != Global(
                LIGHTNING_CALLBACK
            ):
                raise ForbiddenError("a dictionary key that is neither text nor number")
            target[key] = value

    def name(self, argument: str) -> None:
        module, _, attribute = argument.partition(" ")
        full = f"{_PYTHON_2.get(module, module)}.{attribute}"
        inert = (PARAMETER_DICT, LIGHTNING_CALLBACK)
        if (
            full not in _CALLS
            and full not in _STORAGES
            and full not in _DTYPES
            and full not in inert
        ):
            raise ForbiddenError(full)
        self.findings.names_callback |= full == LIGHTNING_CALLBACK
        self.stack.append(Global(full))

    def persistent(self, _: Any) -> None:
        saved = self.stack.pop()
        if not isinstance(saved, tuple) or saved[0] not in ("storage", b"storage"):
            raise ForbiddenError("a stored object other than numbers")
        kind, key, _location, count = saved[1:5]
        if (
            not isinstance(kind, Global)
            or kind.name not in _STORAGES
            or type(count) is not int
            or count < 0
        ):
            raise ForbiddenError(f"a storage declared as {str(saved)[:80]}")
        storage = Storage(str(key), count, _STORAGES[kind.name])
        known = self.findings.storages.setdefault(storage.key, storage)
        known.count = max(known.count, -(-storage.size // known.element_bytes))
        self.stack.append(storage)

    def new_object(self, _: Any) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if cls != Global(PARAMETER_DICT) or arguments != ():
            raise ForbiddenError(f"an object of {getattr(cls, 'name', 'an unnamed class')}")
        self.findings.boxes += 1
        self.stack.append(ParameterBox())

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(state) is not dict or not all(isinstance(key, str) for key in state):
            raise ForbiddenError("an object state that is not a dictionary")
        if isinstance(target, ParameterBox):
            target.state = state
        elif type(target) is not dict:
            raise ForbiddenError("a state for something that has none")

    def reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if (
            not isinstance(function, Global)
            or function.name not in _CALLS
            or not isinstance(arguments, tuple)
        ):
            raise ForbiddenError(f"a call of {getattr(function, 'name', 'something unnamed')}")
        self.stack.append(self.call(function.name.rpartition(".")[2], arguments))

    def call(self, function: str, arguments: tuple[Any, ...]) -> Any:
        if function == "OrderedDict":
            if arguments:
                raise ForbiddenError("a call of collections.OrderedDict with arguments")
            return {}
        if function == "_rebuild_parameter":
            if not isinstance(arguments[0], Shape):
                raise ForbiddenError("a parameter that holds no tensor")
            return arguments[0]
        if function.startswith("_rebuild_tensor"):
            return self.tensor(function, *arguments)
        if function == "Size":
            return _sizes(arguments[0])
        if function == "encode":
            text, encoding = arguments
            if not isinstance(text, str) or encoding != "latin1":
                raise ForbiddenError("a call of _codecs.encode with another encoding than latin1")
            return text.encode("latin1")
        if (
            not arguments
            or not isinstance(arguments[0], str | list)
            or _has_containers(arguments[0])
        ):
            raise ForbiddenError(f"a call of {function} with unusual arguments")
        return Global(function)

    def tensor(
        self, function: str, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any
    ) -> Shape:
        sizes, steps = _sizes(shape), _sizes(strides)
        if (
            not isinstance(storage, Storage)
            or type(offset) is not int
            or offset < 0
            or len(sizes) != len(steps)
        ):
            raise ForbiddenError("a tensor without proper storage, offset, shape and strides")
        element_bytes = storage.element_bytes
        if function.endswith("_v3"):
            element_bytes = _DTYPES[more[2].name]
        count = math.prod(sizes)
        last = offset + sum((size - 1) * step for size, step in zip(sizes, steps)) if count else 0
        if count * element_bytes > storage.size or (
            last + 1
        ) * element_bytes > storage.size + element_bytes * (not count):
            raise ForbiddenError(
                f"a tensor of shape {list(sizes)[:8]} over only {storage.size} bytes of data"
            )
        self.findings.viewed_bytes += count * element_bytes
        return Shape(sizes)


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or not all(
        type(item) is int and 0 <= item < 2**62 for item in value
    ):
        raise ForbiddenError("a shape that is not a list of whole numbers")
    if len(value) > 64:
        raise ForbiddenError(f"a tensor of {len(value)} dimensions")
    return tuple(value)


def _has_containers(value: Any) -> bool:
    return isinstance(value, list) and any(
        not isinstance(item, str | int | float | bytes | None) for item in value
    )


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_LITERALS = ("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1")
_STEPS: dict[str, Callable[[_Reader, Any], None]] = {
    "MARK": _Reader.mark,
    "TUPLE": lambda reader, _: reader.tuple_of(None),
    "TUPLE1": lambda reader, _: reader.tuple_of(1),
    "TUPLE2": lambda reader, _: reader.tuple_of(2),
    "TUPLE3": lambda reader, _: reader.tuple_of(3),
    "APPEND": lambda reader, _: reader.append([reader.stack.pop()]),
    "APPENDS": lambda reader, _: reader.append(reader.pop_mark()),
    "SETITEM": lambda reader, _: reader.set_items([reader.stack.pop(), reader.stack.pop()][::-1]),
    "SETITEMS": lambda reader, _: reader.set_items(reader.pop_mark()),
    "GLOBAL": _Reader.name,
    "BINPERSID": _Reader.persistent,
    "NEWOBJ": _Reader.new_object,
    "BUILD": _Reader.build,
    "REDUCE": _Reader.reduce,
}
