"""Tiny models of real families, made by transformers with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

VOCABULARY, HIDDEN, LAYERS = 64, 32, 2

# Sizes under every name that configurations use. A name that a configuration does not have is left out.
_SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("vocab_size",), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size"), HIDDEN),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), LAYERS
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads"),
        4,
    ),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(
        (
            "intermediate_size",
            "n_inner",
            "ffn_dim",
            "d_ff",
            "ffn_hidden_size",
            "hidden_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
        ),
        48,
    ),
    "moe_intermediate_size": 16,
    "d_kv": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Family:
    """One family.

    config : name of the configuration in transformers
    model : name of the model
    settings : keys of the configuration besides the sizes above
    inputs : keywords of a forward pass; by default token ids
    tied : whether a variant with tied embeddings is tried
    lora : whether PEFT adapts all of its linear layers
    """

    name: str
    config: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    inputs: Callable[[], dict[str, torch.Tensor]] | None = None
    tied: bool = True
    lora: bool = True

    def make_config(self, **changes: Any) -> Any:
        """Return the configuration of a tiny model."""
        import transformers

        known = getattr(transformers, self.config)
        default = known()
        names = {**getattr(default, "attribute_map", {})}
        sizes = {
            key: value
            for key, value in _SIZES.items()
            if hasattr(default, key) and key not in names and not isinstance(getattr(known, key, None), property)
        }
        return known(**{**sizes, **self.settings, **changes})

    def make_model(self, seed: int, **changes: Any) -> Any:
        """Return a model with random weights."""
        import transformers

        torch.manual_seed(seed)
        model = getattr(transformers, self.model)(self.make_config(**changes)).float().eval()
        model.config.architectures = [self.model]
        return model

    def forward(self, model: Any) -> torch.Tensor:
        """Return the output of the model for fixed inputs."""
        torch.manual_seed(1)
        tokens = {"input_ids": torch.randint(3, VOCABULARY, (2, 9))}
        with torch.no_grad():
            output = model(**(self.inputs() if self.inputs is not None else tokens))
        return output[0] if isinstance(output, tuple) else next(iter(output.values()))


def encoder_decoder_inputs() -> dict[str, torch.Tensor]:
    """Return token ids for encoder and decoder."""
    return {
        "input_ids": torch.randint(3, VOCABULARY, (2, 9)),
        "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 5)),
    }


def image_inputs() -> dict[str, torch.Tensor]:
    """Return two images of 32 x 32 pixels."""
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def clip_inputs() -> dict[str, torch.Tensor]:
    """Return images and texts."""
    return {**image_inputs(), "input_ids": torch.randint(3, VOCABULARY, (2, 9))}


def speech_inputs() -> dict[str, torch.Tensor]:
    """Return spectrograms and token ids of the decoder."""
    return {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 5))}


def waveform_inputs() -> dict[str, torch.Tensor]:
    """Return two mono recordings of 400 samples."""
    return {"input_values": torch.randn(2, 400)}


def image_and_text_inputs() -> dict[str, torch.Tensor]:
    """Return an image of 32 x 32 pixels, 16 patches, and tokens that it stands among."""
    tokens = torch.randint(3, VOCABULARY - 1, (1, 9))
    image = torch.full((1, 16), VOCABULARY - 1)
    return {"input_ids": torch.cat([tokens, image], 1), "pixel_values": torch.randn(1, 3, 32, 32)}


_IMAGE = {"image_size": 32, "patch_size": 8}
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_TOWERS = {
    "text_config": {**_TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": 16, "eos_token_id": 2},
    "vision_config": {**_TOWER, "image_size": 32, "patch_size": 8},
}
_TEXT = {**_TOWER, "vocab_size": VOCABULARY, "num_key_value_heads": 2, "pad_token_id": 0}
_LLAVA = {
    "text_config": {"model_type": "llama", **_TEXT},
    "vision_config": {"model_type": "clip_vision_model", **_TOWER, "image_size": 32, "patch_size": 8},
    "image_token_index": VOCABULARY - 1,
    "image_token_id": VOCABULARY - 1,
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -1,
}
_WAVEFORM = {
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": VOCABULARY,
}
_CLIP = {**_TOWERS, "projection_dim": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DEEPSEEK = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "head_dim": 4,
    "num_key_value_heads": 4,
}

FAMILIES: tuple[Family, ...] = (
    Family("Llama", "LlamaConfig", "LlamaForCausalLM"),
    Family("Mistral", "MistralConfig", "MistralForCausalLM"),
    Family("Qwen2", "Qwen2Config", "Qwen2ForCausalLM"),
    Family("Qwen3", "Qwen3Config", "Qwen3ForCausalLM"),
    Family("Gemma 2", "Gemma2Config", "Gemma2ForCausalLM"),
    Family("Gemma 3", "Gemma3TextConfig", "Gemma3ForCausalLM"),
    Family("Phi-2", "PhiConfig", "PhiForCausalLM"),
    Family("Phi-3", "Phi3Config", "Phi3ForCausalLM"),
    Family("OLMo 2", "Olmo2Config", "Olmo2ForCausalLM"),
    Family("Cohere", "CohereConfig", "CohereForCausalLM"),
    Family("StableLM", "StableLmConfig", "StableLmForCausalLM"),
    Family("StarCoder2", "Starcoder2Config", "Starcoder2ForCausalLM"),
    Family("Granite", "GraniteConfig", "GraniteForCausalLM"),
    Family("GLM-4", "Glm4Config", "Glm4ForCausalLM"),
    Family("SmolLM3", "SmolLM3Config", "SmolLM3ForCausalLM"),
    Family("GPT-2", "GPT2Config", "GPT2LMHeadModel"),
    Family("GPT-NeoX", "GPTNeoXConfig", "GPTNeoXForCausalLM"),
    Family("GPT-J", "GPTJConfig", "GPTJForCausalLM", {"rotary_dim": 4}),
    Family("OPT", "OPTConfig", "OPTForCausalLM", {"word_embed_proj_dim": HIDDEN}),
    Family("BLOOM", "BloomConfig", "BloomForCausalLM"),
    Family("Falcon", "FalconConfig", "FalconForCausalLM"),
    Family("MPT", "MptConfig", "MptForCausalLM"),
    Family("GPT-BigCode", "GPTBigCodeConfig", "GPTBigCodeForCausalLM"),
    Family("Mamba", "MambaConfig", "MambaForCausalLM", {"state_size": 4, "time_step_rank": 4}, lora=False),
    Family("Mixtral", "MixtralConfig", "MixtralForCausalLM", _LOCAL),
    Family("Qwen2-MoE", "Qwen2MoeConfig", "Qwen2MoeForCausalLM", {**_EXPERTS, "shared_expert_intermediate_size": 16}),
    Family("Qwen3-MoE", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", _EXPERTS),
    Family("OLMoE", "OlmoeConfig", "OlmoeForCausalLM", _EXPERTS),
    Family("DeepSeek-V3", "DeepseekV3Config", "DeepseekV3ForCausalLM", _DEEPSEEK),
    Family("GPT-OSS", "GptOssConfig", "GptOssForCausalLM", _LOCAL),
    Family("Llama 4", "Llama4TextConfig", "Llama4ForCausalLM", {**_LOCAL, "intermediate_size_mlp": 48}),
    Family("GraniteMoE", "GraniteMoeConfig", "GraniteMoeForCausalLM", _LOCAL),
    Family("Phi-3.5-MoE", "PhimoeConfig", "PhimoeForCausalLM", _LOCAL),
    Family(
        "DBRX",
        "DbrxConfig",
        "DbrxForCausalLM",
        {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": HIDDEN},
        },
        tied=False,
    ),
    Family("BERT", "BertConfig", "BertForMaskedLM"),
    Family("RoBERTa", "RobertaConfig", "RobertaForMaskedLM"),
    Family("DistilBERT", "DistilBertConfig", "DistilBertForMaskedLM"),
    Family("ELECTRA", "ElectraConfig", "ElectraForMaskedLM"),
    Family("ALBERT", "AlbertConfig", "AlbertForMaskedLM"),
    Family("DeBERTa-v2", "DebertaV2Config", "DebertaV2ForMaskedLM"),
    Family("ModernBERT", "ModernBertConfig", "ModernBertForMaskedLM"),
    Family("T5", "T5Config", "T5ForConditionalGeneration", inputs=encoder_decoder_inputs),
    Family("BART", "BartConfig", "BartForConditionalGeneration", inputs=encoder_decoder_inputs),
    Family(
        "Whisper",
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16, "decoder_start_token_id": 1},
        speech_inputs,
    ),
    Family(
        "ViT", "ViTConfig", "ViTForImageClassification", {"image_size": 32, "patch_size": 8}, image_inputs, tied=False
    ),
    Family("CLIP", "CLIPConfig", "CLIPModel", _CLIP, clip_inputs, tied=False),
    Family(
        "SigLIP",
        "SiglipConfig",
        "SiglipModel",
        {k: v for k, v in _CLIP.items() if k != "projection_dim"},
        clip_inputs,
        False,
    ),
    Family("LLaVA", "LlavaConfig", "LlavaForConditionalGeneration", _LLAVA, image_and_text_inputs, tied=False),
    Family("wav2vec 2.0", "Wav2Vec2Config", "Wav2Vec2ForCTC", _WAVEFORM, waveform_inputs, False, False),
)
