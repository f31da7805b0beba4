"""The language of catalogues a second time, over tables in pandas: the reference for the kernel."""
