"""The LLaSO network: log-mel, cut into windows → Whisper encoder → projector → a causal language model.

`LlasoModel` is the network without a head; `LlasoForConditionalGeneration` adds the head, the loss and generation.
The processor writes one placeholder token per audio embedding; `forward` replaces the placeholders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation.logits_process import LogitsProcessorList
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple, torch_compilable_check
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .compatibility_llaso import CACHE_SINCE_5_24, CHUNKS_PREFILL_SINCE_5_23, given_cache
from .configuration_llaso import LlasoConfig

AUTO_MAP = {
    "AutoModel": "modeling_llaso.LlasoModel",
    "AutoModelForMultimodalLM": "modeling_llaso.LlasoForConditionalGeneration",
}
"""The class in a checkpoint's own code for each Auto class; transformers would name only the class that saves."""


@dataclass
class LlasoModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    audio_hidden_states (`torch.Tensor` of shape `(audio_tokens, hidden_size)`, *optional*):
        The audio embeddings that replaced the placeholders, row after row.
    """

    audio_hidden_states: torch.Tensor | None = None


@dataclass
class LlasoCausalLMOutputWithPast(CausalLMOutputWithPast):
    r"""
    loss (`torch.Tensor` of shape `(1,)`, *optional*, returned when `labels` is provided):
        Next-token cross-entropy.
    logits (`torch.Tensor` of shape `(batch_size, sequence_length, vocab_size)`):
        Scores before the softmax; `(kept, vocab_size)` if `logits_to_keep` was a boolean mask.
    audio_hidden_states (`torch.Tensor` of shape `(audio_tokens, hidden_size)`, *optional*):
        The projected audio vectors.
    """

    audio_hidden_states: torch.Tensor | None = None


@dataclass
class LlasoAudioOutput(BaseModelOutputWithPooling):
    r"""
    last_hidden_state (`torch.Tensor` of shape `(windows, vectors, d_model)`):
        The encoder's output, padding included.
    pooler_output (`torch.Tensor` of shape `(audio_tokens, hidden_size)`, *optional*):
        Audio embeddings: the projected vectors of real frames, window after window.
    vector_mask (`torch.Tensor` of shape `(windows, vectors)`, *optional*):
        True for the vectors of real frames, which come first; None if all vectors are.
    """

    vector_mask: torch.Tensor | None = None


def kept_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Select the hidden states whose logits are asked for, as everywhere in transformers.

    Args:
        hidden_states: `(batch, length, hidden_size)`.
        logits_to_keep: that many last positions (0: all); positions for all rows, `(kept,)`; positions for each row,
            `(batch, kept)`; or a boolean mask `(batch, length)`.

    Returns:
        `(batch, kept, hidden_size)`; `(kept, hidden_size)` for a mask.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:, :]
    if logits_to_keep.dtype == torch.bool and logits_to_keep.ndim == 2:
        return hidden_states[logits_to_keep]
    if logits_to_keep.ndim == 2:
        return torch.take_along_dim(hidden_states, logits_to_keep[..., None], dim=1)
    return hidden_states[:, logits_to_keep, :]


Features = torch.Tensor | Sequence[torch.Tensor]
"""A batch of audios, or a list of audios of different length."""


def pad_frames(audios: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack tensors that differ in their last dimension only, padded at its end with zeros."""
    longest = max(audio.shape[-1] for audio in audios)
    return torch.stack([nn.functional.pad(audio, (0, longest - audio.shape[-1])) for audio in audios])


class LlasoEncoder(WhisperEncoder):
    """Whisper's encoder for windows of any length up to its own, with a mask over frames.

    Without a mask it computes what Whisper computes. With one, each window of a batch gets the vectors that it would
    get alone: padding is set to zero between the convolutions and never attended to.
    """

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LlasoAudioOutput:
        r"""
        Args:
            input_features (`torch.Tensor` of shape `(windows, num_mel_bins, frames)`): log-mel, at most
                `2 * max_source_positions` frames.
            input_features_mask (`torch.Tensor` of shape `(windows, frames)`, *optional*): 1 for real frames, which
                come first, 0 for padding.
        """
        hidden_states = nn.functional.gelu(self.conv1(input_features))
        vector_mask = None
        if input_features_mask is not None:
            # A window alone has zeros beyond its last frame; in a batch, the first convolution changed them.
            hidden_states = hidden_states * input_features_mask[:, None, :].to(hidden_states.dtype)
            vector_mask = input_features_mask[:, ::2].bool()
        hidden_states = nn.functional.gelu(self.conv2(hidden_states)).permute(0, 2, 1)

        hidden_states = hidden_states + self.embed_positions.weight[: hidden_states.shape[1]]
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=vector_mask
        )
        for layer in self.layers:
            if self.training and self.layerdrop > 0.0 and torch.rand([]) < self.layerdrop:
                continue
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return LlasoAudioOutput(last_hidden_state=self.layer_norm(hidden_states), vector_mask=vector_mask)


class LlasoMultiModalProjector(nn.Module):
    """Pools by the configuration's stride, then projects by two linear layers into the language model's embeddings.

    `projector_norm` adds a normalization behind them.
    """

    def __init__(self, config: LlasoConfig):
        super().__init__()
        self.stride = config.projector_stride
        self.pooling = config.projector_pooling
        width = config.audio_config.d_model * (self.stride if self.pooling == "concatenate" else 1)
        self.linear_1 = nn.Linear(width, config.text_config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)
        self.norm = nn.RMSNorm(config.text_config.hidden_size, eps=1e-6) if config.projector_norm else nn.Identity()

    def pool(self, vectors: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Pool `(windows, T, d_model)` with its mask `(windows, T)` into `(windows, ceil(T / stride), width)`.

        Padding does not count.
        """
        if self.stride == 1:
            return vectors
        if mask is None:
            mask = vectors.new_ones(vectors.shape[:2])
        mask = mask.to(vectors.dtype)[..., None]
        # ExecuTorch computes the remainder of a negative number as C does, so `-T % stride` would be negative there.
        missing = (self.stride - vectors.shape[1] % self.stride) % self.stride
        vectors = nn.functional.pad(vectors * mask, (0, 0, 0, missing))
        # `reshape`, because ExecuTorch reserves memory for too large a stride after `unflatten`.
        windows, _, width = vectors.shape
        if self.pooling == "concatenate":
            return vectors.reshape(windows, -1, self.stride * width)
        vectors = vectors.reshape(windows, -1, self.stride, width)
        members = nn.functional.pad(mask, (0, 0, 0, missing)).reshape(windows, -1, self.stride, 1).sum(2)
        return vectors.sum(2) / members.clamp(min=1)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Project pooled vectors, `(…, width)`, into embeddings, `(…, hidden_size)`."""
        return self.norm(self.linear_2(self.act(self.linear_1(vectors))))


@auto_docstring
class LlasoPreTrainedModel(PreTrainedModel):
    config: LlasoConfig
    base_model_prefix = "model"
    input_modalities = ("audio", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["WhisperEncoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LlasoMultiModalProjector):
            # PyTorch's own initialization of linear layers, which the released code leaves as it is.
            for linear in (module.linear_1, module.linear_2):
                bound = linear.in_features**-0.5
                init.uniform_(linear.weight, -bound, bound)
                init.uniform_(linear.bias, -bound, bound)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save as transformers does, with both classes in `auto_map`, so that every Auto class finds its own."""
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)


@auto_docstring(custom_intro="The LLaSO network without a language-modelling head.")
class LlasoModel(LlasoPreTrainedModel):
    _auto_class = "AutoModel"

    def __init__(self, config: LlasoConfig):
        super().__init__(config)
        self.audio_tower = LlasoEncoder(config.audio_config)
        self.multi_modal_projector = LlasoMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def generate(self, *args, **kwargs):
        """Refuse: the language-modelling head is in `LlasoForConditionalGeneration`."""
        raise ValueError(
            "LlasoModel has no language-modelling head, so it cannot generate. Load the checkpoint with "
            "AutoModelForMultimodalLM (or LlasoForConditionalGeneration) instead of AutoModel."
        )

    def cut_windows(
        self, input_features: Features, input_features_mask: Features | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Cut audios that are longer than the encoder's window into windows, and leave out those without sound.

        Audios of at most one window stay as they are, so that cutting again changes nothing.

        Args:
            input_features: `(audios, num_mel_bins, frames)`, an audio's windows end to end; or a list of them.
            input_features_mask: `(audios, frames)`, 1 for real frames, which come first; or a list. None: all are.

        Returns:
            Windows, audio after audio: `(windows, num_mel_bins, at most max_frames)`, and their mask.

        Raises:
            ValueError: the mask is not of the audios' shape, or, with `audio_padding="full"`, a window is not whole.
        """
        features, mask = input_features, input_features_mask
        if not isinstance(features, torch.Tensor):
            if mask is None:
                mask = [audio.new_ones(audio.shape[-1]) for audio in features]
            features = pad_frames(features)
        if mask is not None and not isinstance(mask, torch.Tensor):  # as vLLM gives it, for audios of different length
            mask = pad_frames(mask)
        if mask is not None and mask.shape != (len(features), features.shape[-1]):
            raise ValueError(
                f"{len(features)} audios of {features.shape[-1]} frames came with a mask of shape {tuple(mask.shape)}"
            )
        frames, whole, full = features.shape[-1], self.config.max_frames, self.config.audio_padding == "full"
        missing = -frames % whole
        if full and missing and (mask is None or mask.any()):
            raise ValueError(
                f'this model\'s config says audio_padding="full", so it takes windows of {whole} frames, not '
                f'{frames}. Use a processor with audio_padding="full", or set it to "trim" in both.'
            )
        if frames <= whole:
            return features, mask
        if mask is None:
            mask = torch.ones(len(features), frames, dtype=torch.bool, device=features.device)
        mask = nn.functional.pad(mask, (0, missing)).unflatten(1, (-1, whole)).flatten(0, 1)
        features = nn.functional.pad(features, (0, missing)).unflatten(2, (-1, whole)).transpose(1, 2).flatten(0, 1)
        heard = mask.bool().any(-1)
        heard[0] |= ~heard.any()  # the encoder runs on one window at least
        features, mask = features[heard], mask[heard]
        longest = whole if full else max(1, int(mask.bool().sum(-1).max()))
        return features[..., :longest], mask[:, :longest]

    def encode(
        self,
        input_features: Features,
        input_features_mask: Features | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LlasoAudioOutput:
        """Encode log-mel, window by window; a frozen encoder records no graph, whatever else the model trains.

        Args:
            input_features: `(audios, num_mel_bins, frames)`; see `cut_windows`.
            input_features_mask: `(audios, frames)`, 1 for real frames, which come first. With `audio_padding="full"`
                padding within a window counts as sound, as released. A window without a real frame gives no vector;
                it may be short even then.
            **kwargs: for the encoder, such as `output_hidden_states`.

        Returns:
            The encoder's vectors for each window, and which of them come from real frames.

        Raises:
            ValueError: see `cut_windows`.
        """
        input_features, input_features_mask = self.cut_windows(input_features, input_features_mask)
        if self.config.audio_padding == "full" and input_features.shape[-1] == self.config.max_frames:
            input_features_mask = None
        if input_features_mask is not None:
            input_features_mask = input_features_mask.bool()
        learns = input_features.requires_grad or any(p.requires_grad for p in self.audio_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            return self.audio_tower(
                input_features.to(self.audio_tower.conv1.weight.dtype), input_features_mask, return_dict=True, **kwargs
            )

    def project(self, vectors: torch.Tensor, vector_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Pool and project encoder vectors.

        Args:
            vectors: `(windows, vectors, d_model)`, as `encode` gives them.
            vector_mask: `(windows, vectors)`, true for the vectors of real frames, which come first; None if all are.

        Returns:
            The audio embeddings of real frames, window after window: `(audio_tokens, hidden_size)`.
        """
        projector = self.multi_modal_projector
        pooled = projector.pool(vectors.to(projector.linear_1.weight.dtype), vector_mask)
        if vector_mask is None:
            return projector(pooled.flatten(0, 1))
        return projector(pooled[vector_mask[:, :: projector.stride].to(pooled.device)])

    @can_return_tuple
    @auto_docstring(custom_intro="Encodes and projects audio: log-mel windows to embeddings the language model reads.")
    def get_audio_features(
        self,
        input_features: Features,
        input_features_mask: Features | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlasoAudioOutput:
        r"""
        input_features (`torch.Tensor` of shape `(audios, num_mel_bins, frames)`):
            Log-mel of each audio, its windows end to end; or a list of audios of different length.
        input_features_mask (`torch.Tensor` of shape `(audios, frames)`, *optional*):
            1 for real frames, which come first. With `audio_padding="full"` padding within a window counts as sound,
            as released.

        Returns:
            `last_hidden_state` is the encoder's for each window, padding included; `pooler_output` of shape
            `(audio_tokens, hidden_size)` holds the projected vectors of real frames only, window after window. Pass
            the whole output back as `mm_encoder_outputs={"audio": output}` to ask about the same audio again.
        """
        output = self.encode(input_features, input_features_mask, **kwargs)
        assert output.last_hidden_state is not None
        output.pooler_output = self.project(output.last_hidden_state, output.vector_mask)
        return output

    def get_audio_embeds(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
    ) -> torch.Tensor | None:
        """Gather the embeddings of all audio, in reading order, computing what is not there yet.

        Args:
            input_features: see `get_audio_features`.
            input_features_mask: see `get_audio_features`.
            mm_encoder_outputs: see `forward`; this audio comes before that of `input_features`.

        Returns:
            `(audio_tokens, hidden_size)`, or None if there is no audio.
        """
        embeds = []
        if mm_encoder_outputs:
            before = mm_encoder_outputs["audio"]
            projected = before.pooler_output
            if projected is None:
                projected = self.project(before.last_hidden_state, before.vector_mask)
            elif not isinstance(projected, torch.Tensor):
                projected = torch.cat(list(projected))
            embeds.append(projected.flatten(0, -2))
        if input_features is not None:
            embeds.append(self.get_audio_features(input_features, input_features_mask, return_dict=True).pooler_output)
        return torch.cat(embeds) if embeds else None

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, audio_features: torch.Tensor
    ) -> torch.Tensor:
        """
        Obtains the mask of audio placeholders from `input_ids` or, without them, from `inputs_embeds`, and checks that
        there are as many as `audio_features` has vectors.

        Returns:
            The mask, expanded to the shape of `inputs_embeds`.

        Raises:
            ValueError: the numbers differ, or only embeddings came of a placeholder that has none.
        """
        placeholder = self.config.audio_token_id
        if input_ids is not None:
            places = input_ids.eq(placeholder)
        elif placeholder < self.get_input_embeddings().num_embeddings:  # type: ignore[operator]
            row = self.get_input_embeddings()(torch.tensor(placeholder, device=inputs_embeds.device))
            places = inputs_embeds.eq(row).all(-1)
        else:
            raise ValueError(
                "audio is placed by the placeholders in input_ids; inputs_embeds cannot show them, as the placeholder "
                "has no embedding row. Pass input_ids, or inputs_embeds with the audio already in place"
            )
        torch_compilable_check(
            places.sum() == audio_features.shape[0],
            lambda: (
                f"the text holds {int(places.sum())} audio placeholders, but the audio gives "
                f"{audio_features.shape[0]} vectors. Text and audio must come from one processor call, and processor "
                f"and model must agree on audio_padding (here {self.config.audio_padding!r}) and projector_stride "
                f"(here {self.config.projector_stride})."
            ),
        )
        return places[..., None].expand_as(inputs_embeds).to(inputs_embeds.device)

    @can_return_tuple
    @auto_docstring
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlasoModelOutputWithPast:
        r"""
        input_features_mask (`torch.Tensor` of shape `(audios, frames)`, *optional*):
            1 for real frames of `input_features`.
        cache (`Cache`, *optional*):
            Keys and values of the tokens before; `past_key_values` is taken for the same.
        mm_encoder_outputs (`dict[str, LlasoAudioOutput]`, *optional*):
            Audio encoded before: `{"audio": model.get_audio_features(…)}`. Its `pooler_output` is read, a tensor
            `(audio_tokens, hidden_size)` or a list of them in reading order; if that is None, as `encode` leaves it,
            `last_hidden_state` is projected here. If `input_features` are given too, their audio comes after this.
        """
        cache = given_cache(cache, kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        audio_embeds = self.get_audio_embeds(input_features, input_features_mask, mm_encoder_outputs)
        if input_ids is not None:
            # The placeholder need not have an embedding row; what is looked up in its place is overwritten.
            inputs_embeds = self.get_input_embeddings()(
                input_ids.masked_fill(input_ids.eq(self.config.audio_token_id), 0)
            )
        if audio_embeds is not None:
            assert inputs_embeds is not None
            audio_embeds = audio_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
            is_audio = self.get_placeholder_mask(input_ids, inputs_embeds=inputs_embeds, audio_features=audio_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(is_audio, audio_embeds)

        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{CACHE_SINCE_5_24: cache},
            **kwargs,
        )
        return LlasoModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=audio_embeds,
            **{CACHE_SINCE_5_24: outputs.get(CACHE_SINCE_5_24)},
        )


def without_placeholders(input_ids: torch.LongTensor, audio_token_id: int) -> torch.LongTensor:
    """Write each row's first token in place of its audio placeholders, for processors of logits.

    A placeholder behind the vocabulary has no logit, so a penalty that looks up the logits of the prompt's tokens
    would fail. The first token, padding or the prompt's beginning, is in the row anyway, so that no further token is
    penalized.

    Args:
        input_ids: `(…, length)`.
        audio_token_id: the placeholder.

    Returns:
        `(…, length)`.
    """
    return torch.where(input_ids.eq(audio_token_id), input_ids[..., :1], input_ids)  # type: ignore[return-value]


class LlasoLogitsProcessorList(LogitsProcessorList):
    """Runs transformers' logits processors, a caller's own among them, on ids without audio placeholders.

    See `without_placeholders` for what stands in their places.
    """

    def __init__(self, processors: Sequence[Any], audio_token_id: int):
        super().__init__(processors)
        self.audio_token_id = audio_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        return super().__call__(without_placeholders(input_ids, self.audio_token_id), scores, **kwargs)


@auto_docstring(custom_intro="LLaSO: a Whisper encoder, a projector and a language model that answers about audio.")
class LlasoForConditionalGeneration(LlasoPreTrainedModel, GenerationMixin):
    _auto_class = "AutoModelForMultimodalLM"
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: LlasoConfig):
        super().__init__(config)
        self.model = LlasoModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # Gemma applies tanh soft-capping to its logits; the other families have no such field.
        self.logit_softcap = config.text_config.to_dict().get("final_logit_softcapping")
        self.post_init()

    def get_audio_features(self, *args, **kwargs):
        """See [`LlasoModel.get_audio_features`]."""
        return self.model.get_audio_features(*args, **kwargs)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute logits `(…, vocab_size)` of `(…, hidden_size)`; the audio placeholder's is the least there is."""
        logits = self.lm_head(hidden_states)
        if self.logit_softcap is not None:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        if self.config.audio_token_id < logits.shape[-1]:
            placeholder = torch.tensor([self.config.audio_token_id], device=logits.device)
            logits = logits.index_fill(-1, placeholder, torch.finfo(logits.dtype).min)
        return logits

    @can_return_tuple
    @auto_docstring
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | LlasoCausalLMOutputWithPast:
        r"""
        input_features_mask (`torch.Tensor` of shape `(audios, frames)`, *optional*):
            1 for real frames of `input_features`.
        cache (`Cache`, *optional*):
            Keys and values of the tokens before; `past_key_values` is taken for the same.
        mm_encoder_outputs (`dict[str, LlasoAudioOutput]`, *optional*):
            Audio encoded before: `{"audio": model.get_audio_features(…)}`. See [`LlasoModel`].
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Tokens to be predicted, -100 elsewhere. They are shifted here, and audio placeholders are ignored.
        Example:

        ```python
        >>> from transformers import AutoModelForMultimodalLM, AutoProcessor

        >>> processor = AutoProcessor.from_pretrained("runs/quickstart/llaso-tiny")
        >>> model = AutoModelForMultimodalLM.from_pretrained("runs/quickstart/llaso-tiny")
        >>> inputs = processor.apply_transcription_request("speech.wav")
        >>> processor.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```"""
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=given_cache(cache, kwargs),
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        logits = self.compute_logits(kept_positions(hidden_states, logits_to_keep))

        loss = None
        if labels is not None:
            targets = labels.masked_fill(labels.eq(self.config.audio_token_id), -100)  # audio is not predicted
            loss = self.loss_function(
                logits=logits, labels=targets, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return LlasoCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
            **{CACHE_SINCE_5_24: outputs.get(CACHE_SINCE_5_24)},
        )

    def _prepare_generated_length(self, generation_config, **kwargs):  # type: ignore[override]
        """End answers where the language model's context ends, and refuse prompts that leave no room for one.

        Raises:
            ValueError: the prompt fills the context.
        """
        generation_config = super()._prepare_generated_length(generation_config=generation_config, **kwargs)  # type: ignore[misc]
        context, length = self.config.text_config.max_position_embeddings, kwargs["input_ids_length"]
        if length >= context:
            raise ValueError(
                f"the prompt has {length} tokens, its audio included, and the language model reads at most {context} "
                "with the answer; shorten or cut the audio, or shorten the text"
            )
        generation_config.max_length = min(generation_config.max_length, context)
        return generation_config

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs: dict[str, Any], *args, **kwargs):
        """Drop the encoded audio after the prompt, which not every version of transformers does by itself."""
        model_kwargs = super()._update_model_kwargs_for_generation(  # type: ignore[misc]
            outputs, model_kwargs, *args, **kwargs
        )
        for name in ("input_features", "input_features_mask", "mm_encoder_outputs"):
            model_kwargs.pop(name, None)
        return model_kwargs

    def _get_logits_processor(self, *args, encoder_input_ids: torch.LongTensor | None = None, **kwargs):
        """Make the processors of logits see a prompt without placeholders; see `without_placeholders`."""
        if encoder_input_ids is not None and encoder_input_ids.dim() == 2:  # 3 if the prompt is inputs_embeds
            encoder_input_ids = without_placeholders(encoder_input_ids, self.config.audio_token_id)
        processors = super()._get_logits_processor(  # type: ignore[misc]
            *args, encoder_input_ids=encoder_input_ids, **kwargs
        )
        return LlasoLogitsProcessorList(processors, audio_token_id=self.config.audio_token_id)

    def _prefill(self, input_ids: Any, generation_config, model_kwargs: dict[str, Any], *args, **kwargs):
        chunk = generation_config.prefill_chunk_size
        heard = any(model_kwargs.get(name) is not None for name in ("input_features", "mm_encoder_outputs"))
        if chunk is not None and heard and not CHUNKS_PREFILL_SINCE_5_23:
            raise ValueError(
                "prefill_chunk_size with audio needs a newer transformers: pip install 'transformers>=5.23'"
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs,
    ):
        """Repeat rows for beams and samples, after their audio has been encoded once.

        Audios and embeddings are counted over the whole batch, so they cannot be repeated as rows are.
        """
        given = [model_kwargs.get(name) for name in ("input_features", "mm_encoder_outputs", CACHE_SINCE_5_24)]
        if input_ids is not None and not any(value is not None for value in given):
            if count := int(input_ids.eq(self.config.audio_token_id).sum()):
                raise ValueError(
                    f"the text holds {count} audio placeholders, but no audio came with it. Pass everything the "
                    "processor returned: model.generate(**inputs)"
                )
        audio_embeds = None
        if expand_size > 1:
            audio = {
                name: model_kwargs.pop(name, None)
                for name in ("input_features", "input_features_mask", "mm_encoder_outputs")
            }
            audio_embeds = self.model.get_audio_embeds(**audio)
        if audio_embeds is not None:
            embeds = model_kwargs.get("inputs_embeds")
            if embeds is not None:
                places = self.model.get_placeholder_mask(None, embeds, audio_embeds)
            else:
                assert input_ids is not None
                places = self.model.get_placeholder_mask(input_ids, input_ids[..., None], audio_embeds)
            rows = audio_embeds.split(places[..., 0].sum(-1).tolist())
            audio_embeds = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if audio_embeds is not None:
            model_kwargs["mm_encoder_outputs"] = {"audio": LlasoAudioOutput(pooler_output=audio_embeds)}
        return input_ids, model_kwargs


__all__ = ["LlasoEncoder", "LlasoForConditionalGeneration", "LlasoModel", "LlasoPreTrainedModel"]
