"""The one sampler: processors, noise and cut-offs, shared by verification and coupled drafting."""
