"""A program in the files that other tools read: ONNX (QCDQ and QONNX), NIR. The chip's own `.net` is `hw.netx_file`."""
