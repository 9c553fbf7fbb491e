"""One request to an OpenAI-compatible endpoint: what is sent, what came back, what the endpoint can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lengthen.common.errors import LengthenError
from lengthen.generate.engine import Request
from lengthen.generate.patience import Garbage, T, patient
from lengthen.generate.prompt import encode, render

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from transformers import PreTrainedTokenizerFast

CONTINUE = {"add_generation_prompt": False, "continue_final_message": True}
"""How vLLM and SGLang are told to go on with the last message."""
MOST_STOPS = 4


@dataclass(frozen=True)
class EndpointOptions:
    """How to speak to an endpoint.

    concurrency: requests at once. retries: further tries after 429, 5xx, a broken answer, a time-out.
    retry_timeouts: false when a time-out (or a gateway's 504) shall end the request at once.
    seconds + seconds_per_token x max_new_tokens: time allowed to one try.
    backoff: most seconds between two tries; waits double from a quarter of a second, and Retry-After is heeded.
    key: name of the environment variable with the key; local servers need none.
    """

    api: Literal["auto", "chat", "completions"] = "auto"
    concurrency: int = 8
    retries: int = 5
    seconds: float = 60.0
    seconds_per_token: float = 0.5
    backoff: float = 30.0
    key: str = "OPENAI_API_KEY"
    retry_timeouts: bool = True


@dataclass(frozen=True)
class Reply:
    """text, why it ended, and token counts as the endpoint gives them (0: not given)."""

    text: str
    finish_reason: str
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True)
class Abilities:
    """What was found by probing. Each is (able, why not).

    continues: chat goes on with a beginning of the answer. completes: `/v1/completions` answers.
    ids: and takes token ids. adds_begin: it puts a begin token before a text prompt itself.
    """

    continues: tuple[bool, str] = (False, "not asked")
    completes: tuple[bool, str] = (False, "not asked")
    ids: bool = False
    adds_begin: bool = False


class Wire:
    """Speaks to one endpoint about one model."""

    def __init__(
        self,
        client: AsyncOpenAI,
        model: str,
        api: Literal["auto", "chat", "completions"],
        tokenizer: PreTrainedTokenizerFast | None,
        template_options: Mapping[str, Any],
    ) -> None:
        self.client, self.model, self.api = client, model, api
        self.tokenizer, self.template_options = tokenizer, dict(template_options)
        self.abilities, self._options = Abilities(), EndpointOptions()

    # ------------------------------------------------------------------------------------------------- probing
    async def probe(self, options: EndpointOptions, *, prefix: bool, text: bool) -> None:
        """Find out what these requests need: `prefix`, chats with a beginning of the answer; `text`, plain prompts.

        Raises:
            LengthenError: the endpoint lacks it, by name.
        """
        self._options = options
        found = Abilities()
        if prefix and self.api != "completions":
            found = Abilities(continues=await self._probe_continue())
        if text or self.api == "completions" or (prefix and not found.continues[0]):
            found = await self._probe_completions(found)
        self.abilities = found
        self._refuse(prefix=prefix, text=text)

    def _refuse(self, *, prefix: bool, text: bool) -> None:
        found, completes = self.abilities, self.abilities.completes[0] and self.api != "chat"
        if prefix and not found.continues[0] and not (completes and self.tokenizer is not None):
            lacks = f"chat: {found.continues[1]}; completions: "
            if self.api == "chat":
                lacks += "switched off by endpoint.api"
            elif completes:
                lacks += "no tokenizer is set, so the chat template cannot be rendered"
            else:
                lacks += found.completes[1]
            raise LengthenError(
                "The endpoint cannot continue a given beginning of an answer.",
                why=lacks,
                fix="serve the model with vLLM or SGLang, or set a tokenizer and use an endpoint with /v1/completions",
            )
        if text and not completes:
            why = "switched off by endpoint.api" if self.api == "chat" else found.completes[1]
            raise LengthenError(
                "The endpoint cannot take a plain prompt: it has no /v1/completions.", why=why,
                fix="use an endpoint with /v1/completions, or chats (`template: on`)",
            )  # fmt: skip

    async def _probe_continue(self) -> tuple[bool, str]:
        """Whether chat goes on with the last message, seen in the number of prompt tokens: with the end of the turn
        and the next turn's head left away there are fewer than without the wish."""
        import openai

        beginning = "One, two, three, four"
        chat = [{"role": "user", "content": "Count to nine."}, {"role": "assistant", "content": beginning}]
        request = Request("probe", text="", max_new_tokens=1)
        try:
            with_wish = await self._try(lambda: self._chat(chat, request, CONTINUE))
            without = await self._try(lambda: self._chat(chat, request, {}))
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return False, f"continue_final_message was refused ({error.status_code})"
        except Garbage as error:
            return False, f"the probe's answer was {error}"
        if not with_wish.prompt_tokens:
            return False, "it gives no token counts, so that continuing cannot be proved"
        if with_wish.prompt_tokens < without.prompt_tokens:
            return True, ""
        if self.tokenizer is not None:
            asked = Request("probe", messages=(chat[0],), prefix=beginning)  # type: ignore[arg-type]
            if with_wish.prompt_tokens == len(
                encode(self.tokenizer, render(self.tokenizer, asked, self.template_options))
            ):
                return True, ""
        return False, "continue_final_message is ignored"

    async def _probe_completions(self, found: Abilities) -> Abilities:
        import openai

        text = "One, two, three, four"
        request = Request("probe", text=text, max_new_tokens=1)
        try:
            reply = await self._try(lambda: self._complete(text, request))
        except openai.APIStatusError as error:
            return Abilities(found.continues, (False, f"/v1/completions answered {error.status_code}"))
        except Garbage as error:
            return Abilities(found.continues, (False, f"/v1/completions answered {error}"))
        if self.tokenizer is None:
            return Abilities(found.continues, (True, ""))
        ids = encode(self.tokenizer, text)
        begins = reply.prompt_tokens > len(ids)
        try:
            await self._try(lambda: self._complete(ids, request))
            return Abilities(found.continues, (True, ""), ids=True, adds_begin=begins)
        except (openai.APIStatusError, Garbage):
            return Abilities(found.continues, (True, ""), adds_begin=begins)

    async def _try(self, call: Callable[[], Awaitable[T]]) -> T:
        options = self._options
        allowed = options.seconds + options.seconds_per_token
        return await patient(call, allowed, options.retries, options.backoff, timeouts=options.retry_timeouts)

    # ------------------------------------------------------------------------------------------------- asking
    async def ask(self, request: Request) -> Reply:
        """Send a request by the way that `probe` found.

        Raises:
            Garbage, openai.APIError: see there; which of them are worth another try is the caller's to say.
        """
        if (
            request.text is not None
            or self.api == "completions"
            or (request.prefix and not self.abilities.continues[0])
        ):
            return await self._complete(self._prompt(request), request)
        chat = [dict(message) for message in request.messages or ()]
        if not request.prefix:
            return await self._chat(chat, request, {})
        reply = await self._chat([*chat, {"role": "assistant", "content": request.prefix}], request, CONTINUE)
        # Some servers send the beginning back with its continuation.
        text = reply.text.removeprefix(request.prefix)
        return Reply(text, reply.finish_reason, reply.prompt_tokens, reply.new_tokens)

    def _prompt(self, request: Request) -> str | list[int]:
        if self.tokenizer is None:
            if request.text is None:
                raise LengthenError(
                    "A chat cannot be sent to /v1/completions without the model's tokenizer.",
                    fix="set `tokenizer` to the model's folder or Hub name, or use endpoint.api chat",
                )
            return request.text + request.prefix
        text = render(self.tokenizer, request, self.template_options)
        if self.abilities.ids:
            return encode(self.tokenizer, text)
        begin = self.tokenizer.bos_token
        return text.removeprefix(begin) if self.abilities.adds_begin and isinstance(begin, str) else text

    async def _chat(self, messages: list[Any], request: Request, extra: Mapping[str, Any]) -> Reply:
        body = {**extra, **_sampling_extra(request)}
        if self.template_options:
            body["chat_template_kwargs"] = self.template_options
        reply = await self.client.chat.completions.create(
            model=self.model, messages=messages, extra_body=body or None, **_sampling(request)
        )
        choice = _choice(reply)
        text = getattr(getattr(choice, "message", None), "content", None)
        return _reply(reply, choice, text)

    async def _complete(self, prompt: str | list[int], request: Request) -> Reply:
        reply = await self.client.completions.create(
            model=self.model, prompt=prompt, extra_body=_sampling_extra(request) or None, **_sampling(request)
        )
        choice = _choice(reply)
        return _reply(reply, choice, getattr(choice, "text", None))


def _sampling(request: Request) -> dict[str, Any]:
    """Standard fields; those that say nothing are left away, since strict servers refuse what they do not know."""
    fields: dict[str, Any] = {"max_tokens": request.max_new_tokens, "temperature": request.temperature}
    if request.temperature > 0:
        fields["seed"] = request.seed % 2**31
        if request.top_p < 1:
            fields["top_p"] = request.top_p
    if request.stop:
        fields["stop"] = list(request.stop[:MOST_STOPS])
    return fields


def _sampling_extra(request: Request) -> dict[str, Any]:
    """Fields that vLLM, SGLang and llama.cpp add to the protocol."""
    fields: dict[str, Any] = {}
    if request.temperature > 0 and request.top_k > 0:
        fields["top_k"] = request.top_k
    if request.repetition_penalty != 1.0:
        fields["repetition_penalty"] = request.repetition_penalty
    return fields


def _choice(reply: Any) -> Any:
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list) or not choices or choices[0] is None:
        raise Garbage("an answer without a choice")
    return choices[0]


def _reply(reply: Any, choice: Any, text: Any) -> Reply:
    reason = getattr(choice, "finish_reason", None) or "stop"
    if not isinstance(text, str):
        # A model that spends its whole room on thinking has no text yet: that is an answer, an empty one.
        if reason != "length":
            raise Garbage("a choice without text")
        text = ""
    usage = getattr(reply, "usage", None)
    prompt, new = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(text, str(reason), prompt if isinstance(prompt, int) else 0, new if isinstance(new, int) else 0)
