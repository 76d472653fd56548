"""Tests of `dflash-trt serve`."""
