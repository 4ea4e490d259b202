//! Lacuna: an inference and sampling server for masked diffusion models, text and image.
