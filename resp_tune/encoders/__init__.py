"""Frozen pretrained encoders: from a waveform to the outputs of an encoder's layers."""
