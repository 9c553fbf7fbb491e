"""Settings of the `prepare` stage: from documents and conversations to packed training rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lengthen.recipe.base import Derived, ModelFacts, Settings, Size, StageSettings, size_text
from lengthen.recipe.sources import Filters, Source


class Executor(Settings):
    """Where the work runs. Changes no byte of the result."""

    type: Literal["local", "ray", "slurm"] = Field(
        default="local", description="local processes, a Ray cluster (pip install 'lengthen[ray]'), or Slurm jobs."
    )
    workers: int = Field(default=0, ge=0, description="Tasks at a time. 0: one per core (local), no limit elsewhere.")
    attempts: int = Field(default=3, ge=1, description="How often a task that dies is started before the stage stops.")
    cpus_per_task: int = Field(default=1, ge=1, description="ray, slurm: cores per task.")
    memory_gb_per_cpu: int = Field(default=4, ge=1, description="ray, slurm: memory per core.")
    partition: str = Field(default="", description="slurm: partition to submit to.")
    time: str = Field(
        default="04:00:00",
        pattern=r"^(\d+-)?\d+:\d\d:\d\d$",
        description="ray, slurm: time limit of a task, [days-]hours:minutes:seconds.",
    )
    qos: str = Field(default="", description="slurm: quality of service.")
    environment: str = Field(default="", description="slurm: shell line that activates the environment of a task.")
    sbatch: dict[str, str] = Field(default_factory=dict, description="slurm: further #SBATCH options.")
    poll_seconds: float = Field(default=5.0, gt=0, description="slurm: seconds between looks at the queue.")

    @model_validator(mode="after")
    def _needed(self) -> Executor:
        if self.type == "slurm" and not self.partition:
            raise ValueError("slurm needs a partition (sinfo lists them)")
        if self.type != "slurm" and (self.partition or self.qos or self.environment or self.sbatch):
            raise ValueError(f"partition, qos, environment and sbatch have no meaning with executor.type {self.type}")
        return self


class PrepareStage(StageSettings):
    """Read, filter, tokenise, mix and pack sources into rows."""

    kind: Literal["prepare"] = "prepare"
    model: str = Field(default="default", description="Model whose tokenizer and chat template are used.")
    row_length: Size = Field(ge=2, description="Longest row, in tokens. Rows are never padded.")
    sources: list[Source] = Field(min_length=1, description="What to read, and how each source is packed.")
    tokens: Size | None = Field(
        default=None,
        gt=0,
        description="Token budget of the whole mix. Default: as much as the shares allow.",
    )
    filters: Filters = Field(default_factory=Filters, description="Filters of all sources that have none of their own.")
    write_dropped: bool = Field(default=False, description="Write dropped documents to dropped/*.jsonl, with the rule.")
    on_error: Literal["fail", "skip"] = Field(
        default="fail", description="A broken file or record: stop and name it, or leave it out, count it and go on."
    )
    on_dry: Literal["tell", "fail"] = Field(
        default="tell", description="A source that cannot fill its budget: say so in the report, or stop."
    )
    begin_token: str = Field(
        default="auto", description="Token before each document: auto (as the tokenizer itself does), none, or a token."
    )
    end_token: str = Field(
        default="auto",
        description="Token after each document: auto (end of text, else of sequence), none, a token.",
    )
    shard_tokens: Size = Field(default=32 * 2**20, gt=0, description="About this many tokens per parquet shard.")
    part_bytes: Size = Field(default=32 * 2**20, gt=0, description="About this many bytes of input per task.")
    executor: Executor = Field(default_factory=Executor, description="Where the work runs.")

    @model_validator(mode="before")
    @classmethod
    def _name_sources(cls, data):
        if isinstance(data, dict) and isinstance(data.get("sources"), list):
            named = [{**s, "name": s.get("name") or s.get("kind", "")} if isinstance(s, dict) else s
                     for s in data["sources"]]  # fmt: skip
            return {**data, "sources": named}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> PrepareStage:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are called '{name}'; give one of them another `name`")
        shares = [source.share for source in self.sources if source.share is not None]
        if shares and len(shares) < len(names):
            raise ValueError("some sources have a share and some have none; give all of them one, or none")
        if shares and abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"the shares of the sources add up to {sum(shares):g}; they must add up to 1")
        if self.tokens and not shares and len(names) > 1:
            raise ValueError("`tokens` divides a budget by shares, and the sources have none; give each a share")
        for source in self.sources:
            for piece in [source.piece_length, *(bucket.piece_length for bucket in source.buckets)]:
                if piece and self.row_length % piece:
                    raise ValueError(
                        f"source '{source.name}': piece_length {piece} does not divide row_length {self.row_length}"
                    )
            if source.interleave and source.conversations:
                raise ValueError(f"source '{source.name}': conversations cannot be interleaved")
        for pool in {source.pool for source in self.sources if source.pool}:
            ways = {(s.packing, s.piece_length, str(s.interleave)) for s in self.sources if s.pool == pool}
            if len(ways) > 1:
                raise ValueError(f"the sources of pool '{pool}' differ in packing, piece_length or interleave")
        return self

    def derived(self, facts: ModelFacts | None) -> list[Derived]:
        if self.tokens is None:
            return []
        rows = -(-self.tokens // self.row_length)
        return [Derived("rows", rows, f"{size_text(self.tokens)} tokens in rows of {size_text(self.row_length)}")]

    def external_inputs(self) -> list[str]:
        found = [path for source in self.sources for path in source.inputs() if not path.startswith("@")]
        ngrams = [p for f in (self.filters, *(s.filters for s in self.sources)) if f for p in f.decontaminate]
        return [*super().external_inputs(), *found, *(path for path in ngrams if not path.startswith("@"))]

    def without_effect(self) -> set[str]:
        return {"executor"}

    def cost(self) -> float:
        return 20.0 if self.tokens is None else max(5.0, self.tokens / 5e5)
