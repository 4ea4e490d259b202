//! Layers and kernels.
