"""Which rule stands for which operation, by the name of PyTorch's function. A name without a rule is refused."""

from collections.abc import Callable, Mapping

from lib.parallel.typed import context, experts, lookup, moves, parts, pieces, products, reductions, views
from lib.parallel.typed.elementwise import nonlinear
from lib.parallel.typed.indexing import indexed
from lib.parallel.typed.sums import added, copied, divided, filled_like, negated, scaled

NONLINEAR = (
    "gelu relu silu sigmoid tanh exp log log1p expm1 sqrt rsqrt square pow rpow abs clamp clamp_min clamp_max erf sin "
    "cos dropout native_dropout masked_fill where eq ne lt le gt ge logical_and logical_or logical_not and or xor "
    "invert maximum minimum sign reciprocal leaky_relu elu hardtanh relu6 mish rdiv remainder floor_divide floordiv "
    "softplus isnan isinf isfinite round floor ceil rfloordiv mod atan2 lerp addcmul addcdiv logaddexp long"
)
COPIES = (
    "contiguous clone detach to float double half bfloat16 type_as view_as_self positive requires_grad_ cpu data "
    "alias retain_grad zeros_like empty_like cuda type"
)

EXPERTS = "dispatch combine set_out arrive count_rows rows_of_all keep_first each_expert grouped_mm".split()

RULES: Mapping[str, Callable] = {
    **{name: nonlinear(name) for name in NONLINEAR.split()},
    **dict.fromkeys(COPIES.split(), copied),
    **dict.fromkeys(("neg", "negative"), negated),
    **dict.fromkeys(("ones_like", "full_like", "rand_like", "randn_like"), filled_like),
    **dict.fromkeys(("add", "radd", "iadd", "sub", "rsub", "isub", "subtract"), added),
    **dict.fromkeys(("mul", "rmul", "imul", "multiply"), scaled),
    **dict.fromkeys(("div", "truediv", "itruediv", "true_divide", "idiv"), divided),
    **dict.fromkeys(("matmul", "mm", "bmm"), products.matmul),
    "rmatmul": lambda x, w: products.matmul(w, x),
    "linear": products.linear,
    "scaled_dot_product_attention": products.attention,
    "_scaled_dot_product_flash_attention_for_cpu": products.attention,
    **dict.fromkeys(("transpose", "swapaxes"), views.transpose),
    "permute": views.permute,
    **dict.fromkeys(("T", "mT", "t"), views.t),
    "unsqueeze": views.unsqueeze,
    "squeeze": views.squeeze,
    **dict.fromkeys(("view", "reshape"), views.view),
    "flatten": views.flatten,
    "view_as": views.view_as,
    "unflatten": views.unflatten,
    "expand": views.expand,
    **dict.fromkeys(("split", "split_with_sizes"), parts.split),
    "chunk": parts.chunk,
    "unbind": parts.unbind,
    "select": parts.select,
    **dict.fromkeys(("cat", "concat"), parts.cat),
    "getitem": indexed,
    **dict.fromkeys(("gather", "scatter"), parts.picked),
    "topk": parts.topk,
    "repeat_interleave": parts.repeat_interleave,
    **{name: parts.along(name) for name in ("flip", "roll", "cumsum", "cumprod")},
    **{name: parts.triangle(name) for name in ("tril", "triu")},
    "sum": reductions.summed("sum"),
    "mean_loss": lambda losses, targets, *_, **__: reductions.summed("mean")(losses),
    "mean": reductions.summed("mean"),
    **dict.fromkeys(("amax", "max"), reductions.summed("max")),
    **dict.fromkeys(("amin", "min"), reductions.summed("min")),
    **{name: reductions.reduced_whole(name) for name in ("var", "std", "logsumexp", "prod", "all", "any", "argmax")},
    **dict.fromkeys(("norm", "vector_norm", "linalg_vector_norm"), reductions.vector_norm),
    **{name: reductions.over(name) for name in ("softmax", "log_softmax")},
    **{name: reductions.norm(name) for name in ("layer_norm", "rms_norm")},
    **{name: reductions.loss(name) for name in reductions.LOSSES},
    "embedding": lookup.embedding,
    "own_tokens": lookup.own_tokens,
    "vocab_parallel_cross_entropy": lookup.vocab_parallel_cross_entropy,
    "gather_linear": moves.gather_linear,
    "overlapped_linear": moves.overlapped_linear,
    "own": lookup.own_places,
    "call": context.context_attention,
    **{name: getattr(experts, name) for name in EXPERTS},
    "_grouped_mm": experts.grouped_mm,
    "plan": experts.planned,
    **dict.fromkeys(("sent", "taken_by_experts"), experts.own_choice),
    "gather_parameters": pieces.gather_parameters,
    "power_sum": pieces.power_sum,
    "_foreach_mul": pieces.all_scaled,
    "send_bucket": pieces.seen_inside,
    **{name: getattr(moves, name) for name in moves.MOVES},
}

BESIDE: Mapping[str, Callable] = {  # what a move over one axis is for the kinds over another
    **{name: moves.stays(name) for name in moves.MOVES},
    "own_tokens": lambda tokens, *_: [tokens.kind, tokens.kind],
    "vocab_parallel_cross_entropy": lookup.vocab_parallel_beside,
    "own": lookup.own_places_beside,
    "call": context.context_beside,
    **{name: getattr(experts, f"{name}_beside") for name in ("dispatch", "combine", "set_out")},
    **dict.fromkeys(("arrive", "rows_of_all"), experts.same),
    "plan": experts.planned,
    "taken_by_experts": experts.own_choice,
    "gather_parameters": pieces.gather_beside,
    "gather_linear": products.linear_beside,
    "overlapped_linear": products.linear_beside,
}

ASK = frozenset(  # they tell something about a tensor that is no tensor, and no number of it
    "size dim ndimension numel nelement stride storage_offset is_floating_point is_complex is_contiguous element_size "
    "is_meta get_device data_ptr untyped_storage register_hook register_post_accumulate_grad_hook __len__ hash repr "
    "format _is_view is_same_size set_ is_inference is_pinned is_nonzero reduce_ex is_set_to has_names dense_dim "
    "layout is_shared _typed_storage _version len result_type can_cast is_tensor zero_ requires_grad deepcopy "
    "check_tokens".split()
)
READ = frozenset("item tolist bool float int index numpy equal allclose".split())  # they read the numbers
