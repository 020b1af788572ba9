"""What layers of experts cost: parameters held and used, bytes of the all-to-alls, rows per expert, what is hidden.

For n tokens on each of P devices, k of E experts of inner size i each, hidden size h, in numbers of b bytes::

    parameters        m h i for each expert, m = 2 matrices or 3 with a gate; all E are held, k are used by a token
    FLOPs             2 m h i k for each token, forward
    an all-to-all     k n h b (P-1)/P sent by each device, if loads are even; 2 forward, 2 backward

Bytes and FLOPs both grow with k n h, so there are m i / b FLOPs for each byte that is sent there and back: the inner
size alone says whether links keep up with the arithmetic.
"""

from dataclasses import dataclass

from lib.devices.hardware import Hardware, Link

BYTES = 2  # of a 16-bit number


@dataclass(frozen=True)
class ExpertShape:
    """One layer: `experts` MLPs `hidden` -> `inner` -> `hidden`, `k` of them for each token, and `shared` for all."""

    hidden: int
    inner: int
    experts: int
    k: int
    shared: int = 0
    gated: bool = True

    @property
    def expert_parameters(self) -> int:
        """Of one expert."""
        return (3 if self.gated else 2) * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        """All that the layer holds, the router among them."""
        return (self.experts + self.shared) * self.expert_parameters + self.experts * self.hidden

    @property
    def active(self) -> int:
        """Those that one token uses: the router is used whole."""
        return (self.k + self.shared) * self.expert_parameters + self.experts * self.hidden

    def flops(self, tokens: int) -> int:
        """Forward: a multiplication and an addition for each active parameter and token."""
        return 2 * self.active * tokens

    def all_to_all_bytes(self, tokens: int, devices: int, itemsize: int = BYTES) -> float:
        """What each device sends in one all-to-all, for `tokens` tokens of its own and even loads."""
        return self.k * tokens * self.hidden * itemsize * (devices - 1) / devices

    def experts_read(self, tokens: int) -> float:
        """How many different experts `tokens` tokens use, on average, if each chooses at random."""
        return self.experts * (1 - (1 - self.k / self.experts) ** tokens)


@dataclass(frozen=True)
class ExpertModel:
    """A transformer of `layers`, the first `dense_layers` of them with an MLP of inner size `dense_inner`.

    `attention` is how many parameters one layer's attention has, its own norms among them. Two norms of `hidden` stand
    in each layer and one at the end; the head is a matrix of its own.
    """

    expert: ExpertShape
    layers: int
    attention: int
    vocabulary: int
    dense_layers: int = 0
    dense_inner: int = 0

    def _with(self, of_layer: int) -> int:
        h = self.expert.hidden
        dense = self.dense_layers * 3 * h * self.dense_inner
        around = self.layers * (self.attention + 2 * h) + h + 2 * self.vocabulary * h
        return around + dense + (self.layers - self.dense_layers) * of_layer

    @property
    def parameters(self) -> int:
        """All."""
        return self._with(self.expert.parameters)

    @property
    def active(self) -> int:
        """Those that one token uses, both embeddings counted whole, as is usual."""
        return self._with(self.expert.active)


def grouped_attention(hidden: int, heads: int, kv_heads: int, head: int) -> int:
    """Parameters of attention whose query heads share keys and values, without biases."""
    return 2 * hidden * heads * head + 2 * hidden * kv_heads * head


def latent_attention(hidden: int, heads: int, q_rank: int, kv_rank: int, plain: int, turned: int, value: int) -> int:
    """Parameters of DeepSeek's attention through two narrow layers with a norm each: queries and keys have `plain`
    dimensions without and `turned` with rotary positions, those of the keys shared by all heads."""
    queries = hidden * q_rank + q_rank + q_rank * heads * (plain + turned)
    keys_values = hidden * (kv_rank + turned) + kv_rank + kv_rank * heads * (plain + value)
    return queries + keys_values + heads * value * hidden


MIXTRAL_8X7B = ExpertModel(ExpertShape(4096, 14336, 8, 2), 32, grouped_attention(4096, 32, 8, 128), 32000)
DEEPSEEK_V3 = ExpertModel(
    ExpertShape(7168, 2048, 256, 8, shared=1),
    61,
    latent_attention(7168, 128, 1536, 512, 128, 64, 128),
    129280,
    dense_layers=3,
    dense_inner=18432,
)


def least_inner(hardware: Hardware, link: Link, devices: int, gated: bool = True, itemsize: int = BYTES) -> float:
    """The inner size from which an expert's arithmetic takes as long as its rows need there and back.

    Above it, the two all-to-alls can be hidden; below it they cannot, however many tokens there are: both grow alike.
    Latency is left out: it is what few tokens add.
    """
    sent = 2 * itemsize * (devices - 1) / devices  # bytes for each element of a row
    return sent / link.bandwidth * hardware.reached / (2 * (3 if gated else 2))


def rows_to_keep_busy(hardware: Hardware, itemsize: int = BYTES) -> float:
    """Rows per expert from which a product is bound by arithmetic, and no longer by reading the weights.

    Reading h i weights takes h i b / bandwidth, multiplying them with n rows 2 n h i / FLOP/s. What rows themselves
    need is left out. Products of many experts in one kernel ("grouped GEMM") save launches, not this.
    """
    return itemsize * hardware.reached / (2 * hardware.memory_bandwidth)
