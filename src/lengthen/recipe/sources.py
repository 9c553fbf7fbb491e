"""Settings of the sources that a `prepare` stage reads, and what happens to each on its way into rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from lengthen.recipe.base import Settings, Size

Packing = Literal["best_fit", "whole_documents", "concatenate", "none"]


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Paths = Annotated[list[str], BeforeValidator(_one_or_many), Field(min_length=1)]


class Interleave(Settings):
    """Tangle the documents of a row so that short texts teach long range. Such rows are attended across (`joined`)."""

    method: Literal["cip", "utk"] = Field(
        default="cip",
        description="cip: chunk-interleaved pretraining, k chunks a document in round robin (LongSkywork, arXiv "
        "2406.00605). utk: Untie-the-Knots, chunks shuffled between markers and traced back (arXiv 2409.04774).",
    )
    chunks: int = Field(default=2, ge=1, description="Chunks per document (k). CIP's authors found 2 best.")


class LengthBucket(Settings):
    """Documents of one range of lengths, with a share of their source."""

    share: float = Field(gt=0, le=1, description="Share of the source's tokens. The buckets' shares add up to 1.")
    min_tokens: Size = Field(default=0, ge=0, description="Shortest document, in tokens.")
    max_tokens: Size | None = Field(default=None, gt=0, description="Longest document, in tokens.")
    piece_length: Size | None = Field(
        default=None, gt=1, description="whole_documents: documents are cut into pieces of exactly this length."
    )


class Filters(Settings):
    """What must hold for a document to go on. Everything dropped is counted by rule."""

    min_tokens: Size = Field(default=0, ge=0, description="Drop documents with fewer tokens.")
    max_tokens: Size | None = Field(default=None, gt=0, description="Drop documents with more tokens.")
    languages: list[str] = Field(
        default_factory=list, description="Keep these languages only (ISO 639-1 codes). Empty: all. Needs py3langid."
    )
    repetition: bool = Field(
        default=False, description="Drop repetitive text by the Gopher rules (arXiv 2112.11446, Table A1)."
    )
    gzip_min: float | None = Field(
        default=None, gt=0, lt=1, description="Drop text whose compressed size is under this share (repetitive)."
    )
    gzip_max: float | None = Field(
        default=None, gt=0, le=1.5, description="Drop text whose compressed size is over this share (noise)."
    )
    exact_duplicates: bool = Field(default=False, description="Keep only the first of documents with equal text.")
    near_duplicates: bool = Field(
        default=False, description="Keep one of each cluster of similar documents (MinHash, 5-grams, 14 x 8 hashes)."
    )
    decontaminate: list[str] = Field(
        default_factory=list, description="N-gram files (.ngrams.npz) of evaluation texts; documents that share one go."
    )
    contamination_hits: int = Field(
        default=1, ge=1, description="Drop a document that holds at least this many different n-grams of those files."
    )


class SourceBase(Settings):
    """What all sources share."""

    name: str = Field(default="", pattern=r"^[\w.-]*$", description="Name in tables and rows. Default: its kind.")
    share: float | None = Field(
        default=None, gt=0, le=1, description="Share of the mix, in tokens. All sources have one, or none has."
    )
    tokens: Size | None = Field(default=None, gt=0, description="Token budget of this source, instead of a share.")
    repeat: float = Field(default=1.0, gt=0, description="Use each document at most this many times (may be 2.5).")
    packing: Packing = Field(
        default="best_fit",
        description="best_fit: nothing shorter than a row is cut, longer documents are split. whole_documents: pieces "
        "of exactly the piece length from documents at least as long. concatenate: in random order, cut at row ends. "
        "none: one document a row.",
    )
    pool: str = Field(default="", description="Sources of one pool are packed together. Default: each by itself.")
    interleave: Interleave | None = Field(default=None, description="Tangle the documents of each row.")
    piece_length: Size | None = Field(
        default=None, gt=1, description="whole_documents: length of the pieces. Default: the row length."
    )
    buckets: list[LengthBucket] = Field(default_factory=list, description="Shares by document length.")
    domains: dict[str, float] = Field(
        default_factory=dict, description="Shares by the documents' domain field. They add up to 1."
    )
    filters: Filters | None = Field(default=None, description="Replaces the stage's filters for this source.")

    @model_validator(mode="after")
    def _consistent(self) -> SourceBase:
        if self.share is not None and self.tokens is not None:
            raise ValueError("give a share or tokens, not both")
        if self.piece_length and self.packing != "whole_documents":
            raise ValueError(f"piece_length has no meaning with packing {self.packing}; use whole_documents")
        if self.packing != "whole_documents" and any(bucket.piece_length for bucket in self.buckets):
            raise ValueError(f"buckets.piece_length has no meaning with packing {self.packing}; use whole_documents")
        for what, shares in (
            ("buckets", [b.share for b in self.buckets]),
            ("domains", list(self.domains.values())),
        ):
            if shares and abs(sum(shares) - 1) > 1e-6:
                raise ValueError(f"the shares of {what} add up to {sum(shares):g}; they must add up to 1")
        if self.interleave and self.packing == "none":
            raise ValueError("interleave needs several documents in a row; packing none puts one in each")
        return self

    def inputs(self) -> list[str]:
        """Paths of the user's that this source reads."""
        return list(getattr(self, "paths", []))

    @property
    def conversations(self) -> bool:
        """Whether its documents are chat messages."""
        return getattr(self, "messages_field", None) is not None


class TextSource(SourceBase):
    """One document per text or Markdown file."""

    kind: Literal["text"]
    paths: Paths = Field(
        description="Files or folders; @stage; package:NAME==VERSION; installed:NAME (a Python package here)."
    )
    patterns: list[str] = Field(
        default=["*.txt", "*.md", "*.markdown", "*.rst", "*.text"],
        description="Names of files taken from folders. "
        "A pattern with a slash speaks of the whole path below the folder: */texts/*.txt.",
    )
    encoding: str = Field(default="utf-8", description="Encoding of the files.")
    domain: Literal["none", "folder"] = Field(
        default="none", description="folder: the first folder below the path is the document's domain."
    )


class JsonlSource(SourceBase):
    """One document per line: plain, .gz or .zst."""

    kind: Literal["jsonl"]
    paths: Paths = Field(description="Files or folders (*.jsonl, *.json, with .gz or .zst); remote paths by fsspec.")
    text_field: str = Field(default="text", description="Key of the text; dots reach inside objects.")
    id_field: str = Field(default="id", description="Key of an id, where there is one.")
    domain_field: str = Field(default="domain", description="Key of the domain, where there is one.")
    encoding: str = Field(default="utf-8", description="Encoding of the files.")


class ParquetSource(SourceBase):
    """One document per parquet row."""

    kind: Literal["parquet"]
    paths: Paths = Field(description="Files or folders (*.parquet); remote paths by fsspec.")
    text_field: str = Field(default="text", description="Column of the text.")
    id_field: str = Field(default="id", description="Column of an id, where there is one.")
    domain_field: str = Field(default="domain", description="Column of the domain, where there is one.")


class HubSource(SourceBase):
    """A Hugging Face dataset by name, or a folder written by `save_to_disk`."""

    kind: Literal["hub"]
    dataset: str = Field(min_length=1, description="owner/name on the Hub, or a local folder.")
    config: str | None = Field(default=None, description="Configuration of the dataset.")
    split: str = Field(default="train", description="Split, e.g. train or train[:1000].")
    revision: str | None = Field(default=None, description="Commit or tag; pin it to get the same bytes again.")
    text_field: str = Field(default="text", description="Column of the text.")
    id_field: str = Field(default="id", description="Column of an id, where there is one.")
    domain_field: str = Field(default="domain", description="Column of the domain, where there is one.")
    messages_field: str | None = Field(
        default=None, description="Column of chat messages: conversations instead of texts."
    )
    long_conversations: Literal["drop", "cut"] = Field(default="drop", description="As for chat sources.")

    def inputs(self) -> list[str]:
        return [self.dataset]


class ChatSource(SourceBase):
    """Conversations (`messages` of role and content) as JSONL; loss on assistant turns only, the stop token trained."""

    kind: Literal["chat"]
    paths: Paths = Field(description="chat.jsonl files or folders; @stage finds its chat.jsonl.")
    messages_field: str = Field(default="messages", description="Key of the messages.")
    long_conversations: Literal["drop", "cut"] = Field(
        default="drop", description="Conversations longer than a row: dropped, or cut at the end. Both are counted."
    )
    encoding: str = Field(default="utf-8", description="Encoding of the files.")


class RepositorySource(SourceBase):
    """One document per code repository: its files joined, a header with the path before each."""

    kind: Literal["repository"]
    paths: Paths = Field(
        description="Folders, archives (zip, tar.*, sdists, wheels), local or remote (s3://, https://), "
        "package:NAME==VERSION, or installed:NAME for a "
        "Python package of this environment (installed:* takes every one, python the standard library)."
    )
    each: bool = Field(default=False, description="Every folder and archive directly below a path is a repository.")
    order: Literal["path", "dependency"] = Field(
        default="path", description="dependency: imported files come before those that import them (Python, C, JS)."
    )
    header: str = Field(default="# {path}\n", description="Text before each file; {path} is its path.")
    max_file_bytes: Size = Field(default=2**20, gt=0, description="Larger files are left out and counted.")
    max_repository_bytes: Size = Field(
        default=2**30, gt=0, description="Unpacked size at which an archive is refused (archive bombs)."
    )


class MdsSource(SourceBase):
    """Tokenised MDS folders of ProLong's published layout (input_ids, indices, length, domain, mask)."""

    kind: Literal["mds"]
    paths: Paths = Field(
        description="Folders with an index.json, local or remote. Their tokens must come from the same tokenizer."
    )


def _kind(value: Any) -> str:
    return str(value.get("kind", "")) if isinstance(value, dict) else str(getattr(value, "kind", ""))


Source = Annotated[
    Annotated[TextSource, Tag("text")]
    | Annotated[JsonlSource, Tag("jsonl")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[ChatSource, Tag("chat")]
    | Annotated[RepositorySource, Tag("repository")]
    | Annotated[MdsSource, Tag("mds")],
    Discriminator(_kind),
]
