"""All that a plug-in may import of virnucpro, beside `virnucpro.kernels` and `virnucpro.errors`."""
