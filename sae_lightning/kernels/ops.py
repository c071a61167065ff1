"""The operators of latents.py: one name for every backend, opaque to torch.compile, with gradients.

Tensors of a batch's entries (`rows`, `latents`, `offsets`: see reference.Entries) are spelt out, because an operator takes nothing else.
Where the number of entries depends on the data, torch.compile is told so. Denser than `DENSE_ABOVE` an operator makes a matrix of them.
"""

import functools
from types import ModuleType

import torch
from torch import Tensor

from sae_lightning.kernels import batch, memory, reference
from sae_lightning.kernels.reference import Entries

DENSE_ABOVE = 0.1
"""Share of entries above which the dense form is the cheaper one on a CPU (benchmarks/density.py prints the crossing)."""

Chosen = tuple[Tensor, Tensor, Tensor, Tensor]
"""Values, rows, latents, offsets."""


@functools.cache
def fast() -> ModuleType | None:
    """The compiled loops, where the extra `fast` is installed."""
    try:
        from sae_lightning.kernels import cpu
    except ImportError:
        return None
    return cpu


def backend(*tensors: Tensor) -> ModuleType:
    """The fastest implementation for these tensors."""
    if all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors):
        return fast() or reference
    return reference


# -- what is chosen -------------------------------------------------------------------------------------------------


@torch.library.custom_op("sae_lightning::encode", mutates_args=())
def encode(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """x Wᵀ + b, off the tape."""
    return reference.encode(x, W, b)


@encode.register_fake
def _(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], W.shape[0])


@torch.library.custom_op("sae_lightning::centred", mutates_args=())
def centred(x: Tensor, b: Tensor) -> Tensor:
    """x − b, off the tape."""
    return torch.sub(x, b, out=memory.empty(tuple(x.shape), x))


@centred.register_fake
def _(x: Tensor, b: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("sae_lightning::top_k", mutates_args=())
def top_k(h: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and latents [batch, k] of the k largest relu(h) of each row."""
    return backend(h).top_k(h, k)


@top_k.register_fake
def _(h: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape[0], k), h.new_empty(h.shape[0], k, dtype=torch.int64)


@torch.library.custom_op("sae_lightning::above", mutates_args=())
def above(h: Tensor, threshold: Tensor) -> Chosen:
    """Every h over its latent's threshold, however many."""
    return backend(h, threshold).above(h, threshold, h.numel())


@torch.library.custom_op("sae_lightning::top_k_of_batch", mutates_args=())
def top_k_of_batch(h: Tensor, n: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The n [] ≥ 1 largest positive h · weight over all ranks, and the smallest of these products."""
    return batch.top_k_of_batch(h, int(n), weight, backend(h).above)


@torch.library.custom_op("sae_lightning::top_k_among", mutates_args=())
def top_k_among(h: Tensor, k: int, among: Tensor) -> Chosen:
    """The k largest positive h of each row, of the latents in `among`."""
    ids = among.nonzero().flatten()
    values, latents = top_k(h.index_select(1, ids), min(k, len(ids)))
    per_row = (values > 0).sum(1)
    rows, places = (values > 0).nonzero(as_tuple=True)
    return values[rows, places], rows, ids[latents[rows, places]], per_row.cumsum(0) - per_row


@torch.library.custom_op("sae_lightning::all_of", mutates_args=())
def all_of(h: Tensor, among: Tensor) -> Chosen:
    """Every h of the latents in `among`."""
    ids, batch = among.nonzero().flatten(), len(h)
    rows = torch.arange(batch, device=h.device)
    return h.index_select(1, ids).flatten(), rows.repeat_interleave(len(ids)), ids.repeat(batch), rows * len(ids)


def _fake_chosen(h: Tensor) -> Chosen:
    n = torch.library.get_ctx().new_dynamic_size()
    rows, latents = h.new_empty(n, dtype=torch.int64), h.new_empty(n, dtype=torch.int64)
    return h.new_empty(n), rows, latents, h.new_empty(h.shape[0], dtype=torch.int64)


above.register_fake(lambda h, threshold: _fake_chosen(h))
top_k_among.register_fake(lambda h, k, among: _fake_chosen(h))
all_of.register_fake(lambda h, among: _fake_chosen(h))
top_k_of_batch.register_fake(lambda h, n, weight: (*_fake_chosen(h), h.new_empty((), dtype=_key_type(h))))


def _key_type(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)


@torch.library.custom_op("sae_lightning::by_latent", mutates_args=())
def by_latent(rows: Tensor, latents: Tensor, offsets: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """`ByLatent` of the entries: order, rows, offsets."""
    module = backend() if rows.device.type == "cpu" else reference
    order, sorted_rows, starts = module.by_latent(Entries(rows, latents, offsets, d_sae))
    return order, sorted_rows, starts


@by_latent.register_fake
def _(rows: Tensor, latents: Tensor, offsets: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(rows), torch.empty_like(rows), rows.new_empty(d_sae)


# -- sums over entries ----------------------------------------------------------------------------------------------


@torch.library.custom_op("sae_lightning::sum_by_row", mutates_args=())
def sum_by_row(values: Tensor, W: Tensor, rows: Tensor, latents: Tensor, offsets: Tensor) -> Tensor:
    """out[row] = Σ value · W[latent]."""
    if _dense(values, offsets, len(W)):
        return product(_matrix(values, rows, latents, len(offsets), len(W)), W)
    return backend(values, W).weighted_sum(values, latents, W, offsets)


@sum_by_row.register_fake
def _(values: Tensor, W: Tensor, rows: Tensor, latents: Tensor, offsets: Tensor) -> Tensor:
    return W.new_empty(offsets.shape[0], W.shape[1])


@torch.library.custom_op("sae_lightning::sum_by_latent", mutates_args=())
def sum_by_latent(values: Tensor, a: Tensor, latents: Tensor, order: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """out[latent] = Σ value · a[row]; `order`, `rows` and `offsets` are those of `ByLatent`."""
    in_order = values.index_select(0, order)
    if _dense(values, offsets, len(a)):
        return product(_matrix(in_order, latents.index_select(0, order), rows, len(offsets), len(a)), a)
    return backend(values, a).weighted_sum(in_order, rows, a, offsets)


@sum_by_latent.register_fake
def _(values: Tensor, a: Tensor, latents: Tensor, order: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    return a.new_empty(offsets.shape[0], a.shape[1])


@torch.library.custom_op("sae_lightning::products", mutates_args=())
def products(a: Tensor, W: Tensor, rows: Tensor, latents: Tensor, offsets: Tensor) -> Tensor:
    """⟨a[row], W[latent]⟩ at every entry."""
    if _dense(latents, offsets, len(W)):
        return product(a, W.T).flatten().index_select(0, rows * len(W) + latents)
    return backend(a, W).products(a, W, Entries(rows, latents, offsets, len(W)))


@products.register_fake
def _(a: Tensor, W: Tensor, rows: Tensor, latents: Tensor, offsets: Tensor) -> Tensor:
    return a.new_empty(latents.shape[0])


def _dense(entries: Tensor, bags: Tensor, others: int) -> bool:
    return len(entries) > DENSE_ABOVE * len(bags) * others


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b, in the precision of both also under autocast."""
    return torch.mm(a, b, out=memory.empty((a.shape[0], b.shape[1]), a))


def _matrix(values: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    matrix = memory.empty((height, width), values).zero_()
    matrix.view(-1)[rows * width + columns] = values
    return matrix


# -- with gradients -------------------------------------------------------------------------------------------------


@torch.library.custom_op("sae_lightning::decode", mutates_args=())
def decode(values: Tensor, W_dec: Tensor, rows: Tensor, latents: Tensor, offsets: Tensor,
           order: Tensor, sorted_rows: Tensor, starts: Tensor) -> Tensor:  # fmt: skip
    """out[row] = Σ value · W_dec[latent]; the last three are `ByLatent`, for the gradient."""
    return sum_by_row(values, W_dec, rows, latents, offsets)


@decode.register_fake
def _(values, W_dec, rows, latents, offsets, order, sorted_rows, starts):
    return W_dec.new_empty(offsets.shape[0], W_dec.shape[1])


def _save_decode(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _decode_backward(ctx, grad: Tensor):
    values, W_dec, rows, latents, offsets, *by = ctx.saved_tensors
    grad, need = grad.contiguous(), ctx.needs_input_grad
    d_values = products(grad, W_dec, rows, latents, offsets) if need[0] else None
    d_W = sum_by_latent(values, grad, latents, *by) if need[1] else None
    return d_values, d_W, None, None, None, None, None, None


decode.register_autograd(_decode_backward, setup_context=_save_decode)


@torch.library.custom_op("sae_lightning::pick", mutates_args=())
def pick(x: Tensor, b_dec: Tensor | None, W_enc: Tensor, b_enc: Tensor, centred: Tensor, chosen: Tensor, rows: Tensor, latents: Tensor,
         offsets: Tensor, order: Tensor, sorted_rows: Tensor, starts: Tensor) -> Tensor:  # fmt: skip
    """What was chosen from h = (x − b_dec) W_encᵀ + b_enc, with the gradient to what h was made of. `centred` is x − b_dec."""
    return chosen.to(b_enc.dtype, copy=True)


@pick.register_fake
def _(x, b_dec, W_enc, b_enc, centred, chosen, rows, latents, offsets, order, sorted_rows, starts):
    return torch.empty_like(chosen, dtype=b_enc.dtype)


def _save_pick(ctx, inputs, output) -> None:
    _, _, W_enc, _, centred, _, *where = inputs
    ctx.save_for_backward(W_enc, centred, *where)


def _pick_backward(ctx, grad: Tensor):
    W_enc, centred, rows, latents, offsets, *by = ctx.saved_tensors
    grad, (need_x, need_b_dec, need_W, *_) = grad.contiguous(), ctx.needs_input_grad
    d_b = reference.sum_per_latent(grad, latents, len(W_enc))
    d_W = sum_by_latent(grad, centred, latents, *by) if need_W else None
    d_x = sum_by_row(grad, W_enc, rows, latents, offsets) if need_x else None
    d_b_dec = -(d_b @ W_enc) if need_b_dec else None
    return d_x, d_b_dec, d_W, d_b, None, None, None, None, None, None, None, None


pick.register_autograd(_pick_backward, setup_context=_save_pick)


class Attach(torch.autograd.Function):
    """All of h, which is off the tape: the dense counterpart of `pick`."""

    @staticmethod
    def forward(ctx, x: Tensor, b_dec: Tensor | None, W_enc: Tensor, b_enc: Tensor, centred: Tensor, h: Tensor) -> Tensor:
        ctx.save_for_backward(W_enc, centred)
        return h.to(b_enc.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        W_enc, centred = ctx.saved_tensors
        need_x, need_b_dec, need_W, *_ = ctx.needs_input_grad
        d_b = grad.sum(0)
        d_x = grad @ W_enc if need_x else None
        d_W = product(grad.T, centred) if need_W else None
        return d_x, -(d_b @ W_enc) if need_b_dec else None, d_W, d_b, None, None


@torch.library.custom_op("sae_lightning::take_rows", mutates_args=())
def take_rows(W: Tensor, latents: Tensor) -> Tensor:
    """W[latents], each at most once: the gradient is put into memory that is used again."""
    return W.index_select(0, latents)


@take_rows.register_fake
def _(W: Tensor, latents: Tensor) -> Tensor:
    return W.new_empty(latents.shape[0], *W.shape[1:])


@torch.library.custom_op("sae_lightning::put_rows", mutates_args=())
def put_rows(rows: Tensor, latents: Tensor, d_sae: int) -> Tensor:
    """0 but for `rows` at `latents`."""
    return memory.empty((d_sae, *rows.shape[1:]), rows).zero_().index_copy_(0, latents, rows)


@put_rows.register_fake
def _(rows: Tensor, latents: Tensor, d_sae: int) -> Tensor:
    return rows.new_empty(d_sae, *rows.shape[1:])


def _save_take_rows(ctx, inputs, output) -> None:
    W, latents = inputs
    ctx.save_for_backward(latents)
    ctx.d_sae = len(W)


take_rows.register_autograd(lambda ctx, grad: (put_rows(grad, *ctx.saved_tensors, ctx.d_sae), None), setup_context=_save_take_rows)
