"""The chat template of a GGUF file, which llama.cpp's server renders to the prompt that the processor writes.

The server joins a message's parts into one text before the template sees it, with a marker `<__media…__>` in the
place of each audio. The template finds the markers, and writes the tags and line breaks around them. The vectors of
`<audio_start>` and `<audio_end>` are in the mmproj file, so their texts are not in the prompt.
"""

from __future__ import annotations

import re

from modeling_llaso.processing_llaso import AUDIO_TAGS, LlasoProcessor, begin_of_text, default_chat_template

WRITE = r"""
{%- macro write(content) -%}
    {%- set pieces = content.split('<__media') -%}
    {%- set text_first = pieces[0].strip() != '' -%}
    {%- for piece in pieces -%}
        {%- set text = piece if loop.first else '<__media' ~ piece -%}
        {%- if not loop.first and '__>' in piece -%}
            {%- set marker = piece.split('__>')[0] ~ '__>' -%}
            {%- set text = piece[marker|length:] -%}
            {{- '\n' if text_first -}}
            {{- '@OPEN@<__media' ~ marker ~ '@CLOSE@' -}}
            {{- '\n\n' if text_first else '\n' -}}
        {%- endif -%}
        {%- set text = text.lstrip() if loop.first else text -%}
        {{- text.rstrip() if loop.last else text -}}
    {%- endfor -%}
{%- endmacro -%}
""".strip()


def llama_cpp_template(processor: LlasoProcessor) -> str:
    """Write a processor's chat template for llama.cpp.

    Raises:
        ValueError: the processor's template is not the one that llaso writes for its tokenizer.
    """
    begin, its = begin_of_text(processor.tokenizer), processor.chat_template
    ours = _reduced(default_chat_template(processor.tokenizer, processor.audio_token), begin)
    if not isinstance(its, str) or _reduced(its, begin) != ours:
        raise ValueError(
            "the processor has a chat template of its own, which the export cannot translate for llama.cpp; save the "
            "processor with chat_template=None, if the model was trained with llaso's template"
        )
    _, turns = ours.split("{%- endmacro -%}", 1)
    turns = re.sub(r"\n *\{%- (end)?generation -%\}", "", turns)
    opening, closing, _, _ = AUDIO_TAGS
    return WRITE.replace("@OPEN@", opening).replace("@CLOSE@", closing) + turns


def _reduced(template: str, begin: str) -> str:
    """Take out what older templates lack and a GGUF file does without: a typed placeholder is plain text in it, and
    the tokenizer's keys say that texts begin with a token.
    """
    template = template.replace(f"{{{{- {begin!r} -}}}}\n", "")
    macro = r"\{%- macro refuse_typed.*?\{%- endmacro -%\}\n"
    return re.sub(r" *\{\{- refuse_typed\(.*\) -\}\}\n", "", re.sub(macro, "", template, flags=re.DOTALL))
