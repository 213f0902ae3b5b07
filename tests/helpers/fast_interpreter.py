"""Remove the overhead of Triton 3.7's interpreter: the same NumPy calls, several times as fast.

Tiles in tests are small, so nearly all of the time goes into the frontend: each value builds its
block type, shape and constexprs again, and each launch searches `triton.language` for functions to
replace.
"""

import dataclasses
import functools
import inspect

from triton.language import core, semantic
from triton.runtime import interpreter

LANGUAGES = (core, interpreter.tl)


def speed_up() -> None:
    """Replaces the slow parts; a second call changes nothing."""
    if interpreter._patch_lang.__module__ != interpreter.__name__:
        return
    share_block_types()
    unwrap_by_class()
    broadcast_by_sizes()
    look_up_numpy_types()
    call_builtins_directly()
    patch_once()
    # Without `debug` nobody reads the condition that this computes.
    options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    interpreter.interpreter_builder.options = options


def sizes_of(type) -> tuple:
    """Shape of a type as plain integers; empty for a scalar."""
    return type.sizes if type.is_block() else ()


def share_block_types() -> None:
    """Makes equal block types one object, and computes the shape of their tensors once."""
    check, known, scalars = core.block_type.__init__, {}, (core.tuple([]), core.constexpr(1))

    def share(element_ty, sizes):
        space = element_ty.address_space if element_ty.is_ptr() else None
        key = (element_ty.name, space, sizes)
        if key not in known:
            one = object.__new__(core.block_type)
            check(one, element_ty, list(sizes))
            one.sizes = sizes
            shape = core.tuple([core.constexpr(size) for size in sizes])
            one.of_tensors = shape, core.constexpr(one.numel)
            known[key] = one
        return known[key]

    def new(cls, element_ty, shape):
        plain = (size.value if type(size) is core.constexpr else size for size in shape)
        return share(element_ty, tuple(plain))

    def init_tensor(self, handle, type):
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = type.of_tensors if type.is_block() else scalars

    core.block_type.__new__ = staticmethod(new)
    core.block_type.__init__ = lambda self, element_ty, shape: None
    core.block_type.with_element_ty = lambda self, scalar_ty: share(scalar_ty, self.sizes)
    core.block_type.to_ir = lambda self, builder: self
    core.tensor.__init__ = init_tensor


def unwrap_by_class() -> None:
    """Lets values that are neither constexprs nor sequences, nearly all, pass unsearched."""
    plain = core._unwrap_if_constexpr
    unwrapped = {int, float, bool, str, type(None), core.tensor, core.dtype, core.block_type}

    def unwrap(value):
        return value if type(value) in unwrapped else plain(value)

    core._unwrap_if_constexpr = unwrap


def broadcast_by_sizes() -> None:
    """Lets operands of one shape pass at once, and broadcasts the others by plain sizes."""
    plain = semantic.TritonSemantic.broadcast_impl_value

    @functools.cache
    def common(left, right):
        if not (left and right):
            return left or right
        pairs = list(zip(left, right, strict=False))
        fit = len(left) == len(right) and all(a == b or 1 in (a, b) for a, b in pairs)
        return tuple(b if a == 1 else a for a, b in pairs) if fit else None

    def spread(semantic, one, sizes):
        has, wanted = sizes_of(one.type), core.block_type(one.dtype, sizes)
        if has == sizes:
            return one
        if has:
            handle = semantic.builder.create_broadcast(one.handle, sizes)
        else:
            handle = semantic.builder.create_splat(wanted, one.handle)
        return semantic.tensor(handle, wanted)

    def broadcast_impl_value(self, left, right):
        one, other = sizes_of(left.type), sizes_of(right.type)
        if one == other:
            return left, right
        if (sizes := common(one, other)) is None:
            return plain(self, left, right)
        return spread(self, left, sizes), spread(self, right, sizes)

    semantic.TritonSemantic.broadcast_impl_value = broadcast_impl_value


def look_up_numpy_types() -> None:
    """Remembers the NumPy type of a Triton type and its widest element by the type's name."""
    plain, found = interpreter._get_np_dtype, {}

    def get_np_dtype(tt_dtype):
        if tt_dtype.name not in found:
            found[tt_dtype.name] = plain(tt_dtype)
        return found[tt_dtype.name]

    interpreter._get_np_dtype = get_np_dtype


def call_builtins_directly() -> None:
    """Calls a function of the language without the wrapper that only looks for `_semantic`."""

    def patch_attr(obj, name, member, builder, scope):
        plain = getattr(member, "__wrapped__", member)

        def call(*arguments, **keywords):
            keywords["_semantic"] = interpreter.interpreter_semantic
            return plain(*arguments, **keywords)

        scope.set_attr(obj, name, call)

    interpreter._patch_attr = patch_attr


def patch_once() -> None:
    """Makes a launch patch `triton.language` once, not at each call of a function.

    What a launch changes is found out once for the process.
    """
    plain, patched, changes = interpreter._patch_lang, set(), {}

    @functools.cache
    def languages(fn):
        found = (one for one in fn.__globals__.values() if inspect.ismodule(one))
        return frozenset(one.__name__ for one in found if one in LANGUAGES)

    def patch(fn):
        key = languages(fn)
        if key not in changes:
            scope = plain(fn)
            changes[key] = [(one, name, getattr(one, name)) for one, name, _ in scope._changes]
            return scope
        scope = interpreter._LangPatchScope()
        for change in changes[key]:
            scope.set_attr(*change)
        return scope

    def patch_lang(fn):
        key = languages(fn)
        if key in patched:
            return interpreter._LangPatchScope()
        patched.add(key)
        scope = patch(fn)
        restore = scope.restore

        def restore_and_forget():
            restore()
            patched.discard(key)

        scope.restore = restore_and_forget
        return scope

    interpreter._patch_lang = patch_lang
