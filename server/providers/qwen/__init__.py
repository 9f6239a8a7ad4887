"""Alibaba's Qwen TTS: one module per conversation with it."""
