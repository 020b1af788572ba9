"""The machinery of the page: pictures, widgets, exercises. `from book import explore, draw_tensor`.

Nothing is loaded before it is asked for: what needs one color must not wait for PyTorch.
"""

from importlib import import_module

_HOMES = {
    "book.pictures.activations": ["draw_activations"],
    "book.pictures.attention": ["draw_attention", "draw_weighted_average"],
    "book.pictures.bars": ["draw_bars"],
    "book.pictures.batch": ["STAGES", "draw_batch", "draw_training_step"],
    "book.pictures.block": ["draw_block"],
    "book.pictures.chart": ["draw_chart"],
    "book.pictures.context": ["draw_context"],
    "book.pictures.context_ring": ["draw_ring"],
    "book.pictures.data_and_tensor": ["draw_data_and_tensor"],
    "book.pictures.experts": ["draw_experts"],
    "book.pictures.experts_load": ["draw_load"],
    "book.pictures.gated": ["draw_gated"],
    "book.pictures.grid": ["draw_grid"],
    "book.pictures.head_scores": ["draw_head_scores"],
    "book.pictures.heads": ["draw_heads"],
    "book.pictures.hops": ["draw_hops", "hops"],
    "book.pictures.kit.language": ["paint"],
    "book.pictures.kit.svg": ["Picture", "element", "stack"],
    "book.pictures.masks": ["draw_masks"],
    "book.pictures.matmul": ["draw_matmul"],
    "book.pictures.memory": ["draw_memory"],
    "book.pictures.mlp": ["draw_mlp"],
    "book.pictures.model": ["draw_model"],
    "book.pictures.ownership": ["draw_ownership"],
    "book.pictures.pipeline": ["draw_schedule"],
    "book.pictures.pipeline_moment": ["draw_moment"],
    "book.pictures.planner": ["draw_plans"],
    "book.pictures.qkv": ["draw_qkv"],
    "book.pictures.recovery": ["draw_resharding", "draw_saving"],
    "book.pictures.rotary": ["draw_rotary"],
    "book.pictures.tensor": ["draw_tensor"],
    "book.pictures.time": ["draw_predictions", "draw_step_time"],
    "book.pictures.timeline": ["draw_timeline"],
    "book.pictures.typed": ["draw_move"],
    "book.pictures.verbs": ["draw_verb", "draw_verbs"],
    "book.printed": ["folded"],
    "book.source": ["Source", "show_source"],
    "book.widget.explore": ["Exploration", "explore"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'book' has no {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
