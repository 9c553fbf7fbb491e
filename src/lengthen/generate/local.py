"""In-process generation with transformers: the embedded default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthen.common.errors import LengthenError
from lengthen.generate.batch import ALONE, Batch, Job, Limits, answer_of, common, out_of_memory
from lengthen.generate.engine import OUT_OF_MEMORY, Answer, Request, failed
from lengthen.generate.prompt import encode, render
from lengthen.generate.reader import CHUNK, Reader
from lengthen.models import load_tokenizer, model_title
from lengthen.train.load import load_model

if TYPE_CHECKING:
    import torch

_WORTH_SHARING = 0.2  # share of a group's prompt tokens that must be common before its prompts run one after another


class LocalEngine:
    """A model in this process.

    Args:
        model: a folder, a stage's folder, a Hub name, or `default`.
        dtype: float32, bfloat16, float16 or auto.
        batch_size: most texts at once. None: 16 on a CPU, 64 on a GPU, fewer where memory or long prompts ask for it.
        rope, window: replace the config's rope_parameters and max_position_embeddings (an extension without training).
        template_options: variables of the chat template.
        chunk: tokens of a prompt that are read together.

    Raises:
        LengthenError: no such model, or one whose layers are no attention layers.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        batch_size: int | None = None,
        rope: dict[str, Any] | None = None,
        window: int | None = None,
        template_options: Mapping[str, Any] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        import torch

        from lengthen.generate import attention

        self.tokenizer = load_tokenizer(model)
        attention.register()
        loaded = load_model(model, dtype=dtype, rope=rope, window=window)
        kinds = set(getattr(loaded.config.get_text_config(), "layer_types", None) or [])
        if kinds - {"full_attention", "sliding_attention", "chunked_attention"} or "chunked_attention" in kinds:
            raise LengthenError(
                f"{model} has layers of the kinds {', '.join(sorted(kinds))}, which the in-process engine cannot run.",
                fix="serve it with vLLM or SGLang and give the endpoint's address: http://host:port/v1#model-name",
            )
        loaded.set_attn_implementation(attention.NAME)
        if torch.cuda.is_available():
            loaded = loaded.to("cuda")  # type: ignore[arg-type]
        self.title = model_title(str(model))
        self.dtype = str(loaded.dtype).removeprefix("torch.")
        self.window = int(getattr(loaded.config.get_text_config(), "max_position_embeddings", 0) or 0)
        self.template_options = dict(template_options or {})
        self.batch_size = batch_size
        self.reader = Reader(loaded, self.tokenizer, chunk)

    @property
    def name(self) -> str:
        return f"transformers:{self.title}"

    def count_tokens(self, text: str) -> int:
        return len(encode(self.tokenizer, text))

    def render(self, request: Request) -> str:
        return render(self.tokenizer, request, self.template_options)

    def close(self) -> None:
        """Give the model's memory back."""
        reader = self.reader
        del self.reader, reader.model
        reader.free()

    def loss_by_token(self, ids: Sequence[int]) -> torch.Tensor:
        """-log p(ids[t] | ids[:t]) in nats for t = 1 .. len(ids) - 1; fp32, length len(ids) - 1."""
        return self.reader.losses(ids)

    def generate(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Answers as they finish.

        Requests of one `share` read their common beginning once; all others fill batches. Groups come in the order of
        their first request.
        """
        groups: dict[str | None, list[Request]] = {}
        for request in requests:
            groups.setdefault(request.share, []).append(request)
        alone = groups.pop(None, [])
        for share, group in list(groups.items()):
            if len(group) == 1:
                alone += groups.pop(share)
        if alone:
            yield from Batch(self.reader, self._limits()).run(self._jobs(alone))
        for group in groups.values():
            yield from self._run_group(self._jobs(group))

    # ------------------------------------------------------------------------------------------------- inside
    def _jobs(self, requests: Sequence[Request]) -> list[Job]:
        jobs = []
        for request in requests:
            ids = encode(self.tokenizer, self.render(request))
            if not ids:
                raise LengthenError(f"Request {request.id} is empty: its prompt has no token.")
            jobs.append(Job(request, ids))
        return jobs

    def _run_group(self, jobs: list[Job]) -> Iterator[Answer]:
        # In lexicographic order neighbours share the most, and one cache, cut back between them, reads every branch
        # of the tree of prompts once.
        jobs = sorted(jobs, key=lambda job: job.ids)
        shared = [common(a.ids, b.ids) for a, b in pairwise(jobs)]
        at_all = min(min(shared), min(len(job.ids) for job in jobs) - 1)
        tail = max(len(job.ids) for job in jobs) - at_all
        if self.reader.can_share and at_all >= tail and tail <= ALONE:
            yield from self._side_by_side(jobs, at_all)
        elif sum(shared) >= _WORTH_SHARING * sum(len(job.ids) for job in jobs):
            yield from self._one_by_one(jobs)
        else:
            yield from Batch(self.reader, self._limits()).run(jobs)

    def _side_by_side(self, jobs: Sequence[Job], length: int) -> Iterator[Answer]:
        """One common beginning, all continuations in a batch over it."""
        try:
            cache = self.reader.cache(length)
            self.reader.read(cache, jobs[0].ids[:length])
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            yield from (failed(j.request, f"{OUT_OF_MEMORY} at a prompt of {len(j.ids):,} tokens") for j in jobs)
            return
        tails = [Job(job.request, job.ids, skip=length) for job in jobs]
        yield from Batch(self.reader, self._limits(), cache.beginning(length)).run(tails)

    def _one_by_one(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        """Long prompts that part at different places: each goes on from what it shares with the one before it."""
        longest = max(len(job.ids) + job.request.max_new_tokens for job in jobs)
        cache = self.reader.cache(longest)
        before: list[int] = []
        for job in jobs:
            try:
                # The last token is always read anew: its logits are wanted.
                cache.cut(min(common(before, job.ids), len(job.ids) - 1))
                yield from self._continue(cache, job)
                before = job.ids
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                cache, before = self.reader.cache(longest), []
                yield failed(job.request, f"{OUT_OF_MEMORY} at a prompt of {len(job.ids):,} tokens")

    def _continue(self, cache: Any, job: Job) -> Iterator[Answer]:
        import time

        from lengthen.generate.batch import Row
        from lengthen.generate.sampling import Chooser, Writer

        batch = Batch(self.reader, Limits(1, 1, 1))
        writer = Writer(self.tokenizer, job.request.stop)
        row = Row(job, Chooser(job.request, job.ids), writer, time.monotonic(), position=len(job.ids))
        batch.rows, batch.cache = [row], cache
        batch.take_token(row, self.reader.read(cache, job.ids[cache.length :]))
        while not row.ended:
            batch.step()
        yield answer_of(row)

    def _limits(self) -> Limits:
        import psutil
        import torch

        config = self.reader.config
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        per_token = 2 * self.reader.layers * heads * size * self.reader.model.dtype.itemsize
        if self.reader.device.type == "cuda":
            free, rows, prompts = 0.8 * torch.cuda.mem_get_info()[0], 64, 1 << 18
        else:
            # On a CPU rows of long prompts gain nothing side by side: reading their keys is the work.
            free, rows, prompts = 0.25 * psutil.virtual_memory().available, 16, 1 << 14
        # Half: filling a place copies the cache.
        return Limits(self.batch_size or rows, prompts, max(1, int(free / per_token / 2)))
