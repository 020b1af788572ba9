"""How the reader sees it: pictures of tensors on devices, and pictures with controls."""

from lib.show.activations import draw_activations
from lib.show.attention import draw_attention, draw_weighted_average
from lib.show.bars import draw_bars
from lib.show.batch import draw_batch, draw_training_step
from lib.show.beside import draw_data_and_tensor
from lib.show.chart import draw_chart
from lib.show.draw import draw_tensor
from lib.show.explore import Exploration, explore
from lib.show.head_scores import draw_head_scores
from lib.show.heads import draw_heads
from lib.show.hops import draw_hops, hops
from lib.show.language import paint
from lib.show.matmul import draw_matmul
from lib.show.memory import draw_memory
from lib.show.mlp import draw_mlp
from lib.show.model import draw_model
from lib.show.qkv import draw_qkv
from lib.show.regions import draw_block
from lib.show.source import Source, show_source
from lib.show.svg import Picture, element, stack
from lib.show.timeline import draw_timeline
from lib.show.verbs import draw_verb, draw_verbs

__all__ = [
    "Exploration",
    "Picture",
    "Source",
    "draw_activations",
    "draw_attention",
    "draw_bars",
    "draw_batch",
    "draw_block",
    "draw_data_and_tensor",
    "draw_head_scores",
    "draw_heads",
    "draw_mlp",
    "draw_model",
    "draw_qkv",
    "draw_weighted_average",
    "draw_training_step",
    "hops",
    "draw_verbs",
    "draw_verb",
    "draw_timeline",
    "draw_memory",
    "draw_hops",
    "draw_chart",
    "draw_matmul",
    "draw_tensor",
    "element",
    "explore",
    "paint",
    "show_source",
    "stack",
]
