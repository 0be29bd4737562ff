"""transformers' own common tests for models, configurations and processors, run over LLaSO's classes.

Skips of theirs carry their own reasons; those that are ours are the overrides below, each with its reason.
"""

from __future__ import annotations

import unittest
import unittest.mock

import pytest
import torch
from support import transformers_sdist
from support.tiny_llaso import text_config, tiny_processor, whisper_config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_NAMES
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from modeling_llaso.configuration_llaso import LlasoConfig, count_audio_tokens
from modeling_llaso.modeling_llaso import LlasoForConditionalGeneration, LlasoModel
from modeling_llaso.processing_llaso import LlasoProcessor

pytestmark = [pytest.mark.network, pytest.mark.slow]

try:
    transformers_sdist.install()
except transformers_sdist.Unavailable as unavailable:
    pytest.skip(str(unavailable), allow_module_level=True)

from transformers_common_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_common_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor  # noqa: E402
from transformers_common_tests.test_processing_common import ProcessorTesterMixin  # noqa: E402


class LlasoModelTester:
    """A tiny configuration and inputs for it, as the mixins ask for them."""

    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 3
        self.frames = 60
        self.seq_length = 35
        self.is_training = True
        self.text_config = text_config(
            vocab_size=99, hidden_size=32, head_dim=8, num_attention_heads=4, num_key_value_heads=2, pad_token_id=1
        ).to_dict()
        self.audio_config = whisper_config(d_model=32, encoder_attention_heads=4, max_source_positions=30).to_dict()
        self.hidden_size = self.text_config["hidden_size"]
        self.num_hidden_layers = self.text_config["num_hidden_layers"]
        self.num_attention_heads = self.text_config["num_attention_heads"]
        self.vocab_size = self.text_config["vocab_size"]
        self.encoder_seq_length = self.seq_length
        self.audio_token_id = 2  # with a row, so that embeddings can show it

    def get_config(self) -> LlasoConfig:
        return LlasoConfig(
            audio_config=self.audio_config,
            text_config=self.text_config,
            audio_token_id=self.audio_token_id,
            audio_padding="trim",
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        tokens = count_audio_tokens(self.frames)
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 3) + 3
        input_ids[:, :tokens] = self.audio_token_id
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones(self.batch_size, self.seq_length, dtype=torch.long),
            "input_features": floats_tensor([self.batch_size, 16, self.frames]),
            "input_features_mask": torch.ones(self.batch_size, self.frames, dtype=torch.long),
        }
        return config, inputs


class LlasoModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LlasoModel, LlasoForConditionalGeneration)
    _is_composite = True

    def setUp(self):
        # What transformers' tables say of its own models, so that their tests know the base class and give labels.
        for table, name in ((MODEL_MAPPING_NAMES, "LlasoModel"), (CAUSAL_NAMES, "LlasoForConditionalGeneration")):
            known = unittest.mock.patch.dict(table, {"llaso": name})
            known.start()
            self.addCleanup(known.stop)
        self.model_tester = LlasoModelTester(self)
        self.config_tester = ConfigTester(self, config_class=LlasoConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("the source distribution does not ship GenerationTesterMixin; test_modeling_llaso.py generates")
    def test_generation_tester_mixin_inheritance(self):
        pass


class LlasoProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = LlasoProcessor
    # Room for the 1500 tokens of a whole window.
    audio_text_kwargs_max_length = 1600
    audio_processor_tester_max_length = 1610
    audio_unstructured_max_length = 1620
    chat_template_max_length = 2000

    @classmethod
    def _setup_tokenizer(cls):
        return tiny_processor().tokenizer

    @classmethod
    def _setup_feature_extractor(cls):
        return tiny_processor().feature_extractor

    @unittest.skip("its message holds an image, which is refused; test_processing_llaso.py has message objects")
    def test_chat_template_message_objects(self):
        pass

    @staticmethod
    def prepare_processor_dict():
        return {"audio_padding": "full"}  # as Whisper's extractor, which they compare with
