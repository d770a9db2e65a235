"""The configs of the models beside Llama that the catalogue has adapters for."""

from __future__ import annotations

from .sources import LLAMA

MIXTRAL = {
    **LLAMA,
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_hidden_layers": 2,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
}
T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 80,
    "num_heads": 6,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "vocab_size": 64,
    "feed_forward_proj": "gated-gelu",
}
BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "type_vocab_size": 2,
    "max_position_embeddings": 32,
}
GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 48,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 32,
    "vocab_size": 64,
}
