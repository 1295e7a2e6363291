"""DeepseekV32ForCausalLM: parameters are named as in the published checkpoints; attention is passed in."""
