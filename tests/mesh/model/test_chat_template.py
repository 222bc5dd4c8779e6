"""Prompts are those transformers renders; a template can neither look around nor write without end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from mesh.errors import RequestRefused, ShardCorrupt
from mesh.model.chat_template import ChatTemplate
from mesh.model.tokenizer import Tokenizer
from mesh.weights.shards.shard import read_shard
from tests.support.aux_shards import aux_shard
from tests.support.releases import PackedRelease
from tests.support.tiny_models import CHATML, byte_level_tokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The habits of Llama 3's: bos_token, trimming, white space control, raise_exception, namespaces, loop controls, tojson.
LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{% set turns = namespace(count=0) %}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant', 'tool'] %}
        {{- raise_exception("role " + message.role + " is not supported") }}
    {%- endif %}
    {%- if message.content is not defined %}{% continue %}{% endif %}
    {%- set turns.count = turns.count + 1 %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- if message.role == 'tool' %}
        {{- message | tojson(indent=2) }}
    {%- endif %}
{%- endfor %}
{{- turns.count }}
    {% if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
    {% endif %}
"""
# For training: the block marks what the assistant wrote. Some ask for tools that an ordinary request does not have.
MARKED = (
    "{% if tools is none and documents is none %}-{% endif %}{% for message in messages %}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "smollm2": SMOLLM2, "llama 3": LLAMA3, "marked": MARKED}
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}

Messages = Sequence[Mapping[str, Any]]
CONVERSATIONS: dict[str, Messages] = {
    "user": [{"role": "user", "content": "hello"}],
    "system first": [{"role": "system", "content": " be kind\n"}, {"role": "user", "content": "héllo <&> '\"{{ x }}"}],
    "turns": [{"role": role, "content": f"{role} speaks\n"} for role in ("user", "assistant", "user")],
}  # fmt: skip


def reference(source: str, messages: Messages, add_generation_prompt: bool) -> str:
    [rendered], _ = render_jinja_template(
        conversations=[messages],
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        **VARIABLES,
    )
    return str(rendered)


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("generation", [True, False])
def test_prompt_equals_that_of_transformers(source: str, messages: Messages, generation: bool) -> None:
    ours = ChatTemplate(source, VARIABLES).render(messages, add_generation_prompt=generation)
    assert ours == reference(source, messages, generation)


@given(
    messages=st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_is_rendered_as_transformers_renders_it(messages: Messages) -> None:
    for source in TEMPLATES.values():
        assert ChatTemplate(source, VARIABLES).render(messages) == reference(source, messages, True)


# The habits of Hermes' and Mistral's: tools as JSON, calls with their arguments as objects, results with their names.
WITH_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- for tool_call in message.tool_calls %}
            {{- '<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' + tool_call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
    {%- else %}{{- message.role + (message.name or '') + message.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{%- endif %}"""
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "é", "parameters": {"type": "object"}},
}


def test_tools_calls_and_further_variables_are_rendered_as_transformers_renders_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "weather", "content": "sunny", "tool_call_id": "1"},
    ]
    template = ChatTemplate(WITH_TOOLS, VARIABLES)
    ours = template.render(messages, tools=[WEATHER], variables={"enable_thinking": False})
    [expected], _ = render_jinja_template(
        conversations=[messages], tools=[WEATHER], chat_template=WITH_TOOLS, add_generation_prompt=True, enable_thinking=False, **VARIABLES
    )  # fmt: skip
    assert ours == expected
    assert "Zürich" in ours
    assert ours.endswith("<think></think>")
    assert template.takes_tools
    assert not ChatTemplate(SMOLLM2, VARIABLES).takes_tools


@given(content=st.text(min_size=1).filter(lambda text: text == text.strip()))
def test_a_message_to_be_continued_is_left_open_as_transformers_leaves_it(content: str) -> None:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    for source in (CHATML, SMOLLM2, LLAMA3.replace("{{- turns.count }}", "")):
        [expected], _ = render_jinja_template(
            conversations=[messages], chat_template=source, continue_final_message=True, **VARIABLES
        )
        assert ChatTemplate(source, VARIABLES).render_open(messages) == expected


def test_a_template_that_hides_the_last_message_cannot_leave_it_open() -> None:
    with pytest.raises(RequestRefused, match="does not show"):
        ChatTemplate("{{ messages[0].content }}", {}).render_open(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        )


def test_variables_of_a_request_cannot_replace_the_messages() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ more }}", {})
    variables = {"messages": [{"content": "forged"}], "more": "!"}
    assert template.render([{"role": "user", "content": "x"}], variables=variables) == "x!"


def test_json_is_written_as_transformers_writes_it() -> None:
    message = {"role": "user", "content": "é<b>'", "list": [1, None, True]}
    for filters in ("tojson", "tojson(indent=2)", "tojson(ensure_ascii=true)", "tojson(sort_keys=true)"):
        source = f"{{{{ messages[0] | {filters} }}}}"
        assert ChatTemplate(source, {}).render([message]) == reference(source, [message], True)


def test_template_says_why_it_does_not_take_the_messages() -> None:
    with pytest.raises(RequestRefused, match="role critic is not supported") as refused:
        ChatTemplate(LLAMA3, VARIABLES).render([{"role": "critic", "content": "x"}])
    assert (refused.value.status, refused.value.code, refused.value.param) == (
        400,
        "invalid_value",
        "messages",
    )


ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "subclasses": "{{ messages.__class__.__base__.__subclasses__() }}",
    "attr filter": "{{ messages | attr('__class__') }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "mutation": "{{ messages.append(1) }}",
    "mutation of a message": "{{ messages[0].update({'role': 'system'}) }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES.keys())
def test_sandbox_lets_nothing_out(source: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    try:
        text = ChatTemplate(source, VARIABLES).render(messages)
    except RequestRefused:
        text = ""
    assert text == ""
    assert messages == [{"role": "user", "content": "x"}]


ENDLESS = {
    "loop": "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'xxxxxxxxxx' * 1000 }}{% endfor %}{% endfor %}",
    "range": "{% for i in range(10 ** 12) %}x{% endfor %}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS.keys())
def test_output_is_bounded(source: str) -> None:
    with pytest.raises(RequestRefused):
        ChatTemplate(source, VARIABLES).render([{"role": "user", "content": "x"}])


ODD: dict[str, Messages] = {
    "no messages": [],
    "no content": [{"role": "user"}],
    "content of parts": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
    "numbers": [{"role": "user", "content": 3}],
}


@pytest.mark.parametrize("messages", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_odd_messages_are_rendered_or_refused_and_nothing_else(source: str, messages: Messages) -> None:
    try:
        assert isinstance(ChatTemplate(source, VARIABLES).render(messages), str)
    except RequestRefused as refused:
        assert refused.param == "messages"


def test_unreadable_template_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(ShardCorrupt, match="a readable chat template"):
        ChatTemplate("{% for %}", {})


def aux_of(template: bytes | None) -> ChatTemplate:
    config = {
        "hidden_size": 8, "intermediate_size": 8, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8,
        "vocab_size": 259, "context_length": 16, "rms_norm_eps": 1e-5, "tied": False, "bos_token_id": 256,
        "eos_token_ids": [258],
        "rope": {
            "theta": 1e4, "kind": "default", "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_context_length": 8192,
        },
    }  # fmt: skip
    files = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": json.dumps(byte_level_tokenizer()).encode(),
        **({} if template is None else {"chat_template.jinja": template}),
    }
    shard = aux_shard(files)
    return ChatTemplate.from_aux(shard, Tokenizer.from_aux(shard))


def test_template_of_a_release_knows_its_special_tokens() -> None:
    template = aux_of(b"{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert template.render([{"role": "user", "content": "x"}]) == "<|endoftext|>x<|im_end|>"


def test_base_model_without_a_template_gets_a_plain_transcript() -> None:
    assert aux_of(None).render([{"role": "user", "content": "hi"}]) == "user: hi\nassistant:"


@pytest.mark.real_model
def test_real_release_renders_what_its_gguf_says(real_release: PackedRelease) -> None:
    ref = real_release.manifest.shard("aux")
    shard = read_shard(real_release.open().shard_path(ref), ref)
    tokenizer = Tokenizer.from_aux(shard)
    text = ChatTemplate.from_aux(shard, tokenizer).render([{"role": "user", "content": "hi"}])
    assert text == reference(SMOLLM2, [{"role": "user", "content": "hi"}], True)
    assert tokenizer.token(tokenizer.encode(text, add_special=False)[0]) == "<|im_start|>"
