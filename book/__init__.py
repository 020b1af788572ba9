"""The machinery of the page: pictures, widgets, exercises. `from book import explore, draw_tensor`."""

from lib.door import door

# Room, file, and the names in it that chapters use. What needs one color does not wait for PyTorch.
ROOMS = {
    "book": {
        "printed": "folded",
        "source": "Source show_source",
    },
    "book.pictures": {
        "activations": "draw_activations",
        "attention": "draw_attention draw_weighted_average",
        "bars": "draw_bars",
        "batch": "STAGES draw_batch draw_training_step",
        "block": "draw_block",
        "chart": "draw_chart",
        "context": "draw_context",
        "context_ring": "draw_ring",
        "data_and_tensor": "draw_data_and_tensor",
        "experts": "draw_experts",
        "experts_load": "draw_load",
        "gated": "draw_gated",
        "grid": "draw_grid",
        "head_scores": "draw_head_scores",
        "heads": "draw_heads",
        "hops": "draw_hops hops",
        "masks": "draw_masks",
        "matmul": "draw_matmul",
        "memory": "draw_memory",
        "mlp": "draw_mlp",
        "model": "draw_model",
        "ownership": "draw_ownership",
        "pipeline": "draw_schedule",
        "pipeline_moment": "draw_moment",
        "planner": "draw_plans",
        "qkv": "draw_qkv",
        "recovery": "draw_resharding draw_saving",
        "rotary": "draw_rotary",
        "tensor": "draw_tensor",
        "time": "draw_predictions draw_step_time",
        "timeline": "draw_timeline",
        "typed": "draw_move",
        "verbs": "draw_verb draw_verbs",
    },
    "book.pictures.kit": {
        "language": "paint",
        "svg": "Picture element stack",
    },
    "book.widget": {
        "explore": "Exploration explore",
    },
}
__all__, __getattr__, __dir__ = door(__name__, ROOMS)
