"""Build the kernels of the fused update; everything else is in pyproject.toml."""

from setuptools import Extension, setup

# A shared library that ctypes loads. It includes nothing of Python, so that it needs no headers and one serves every
# version. Without a C compiler the package is installed without it.
kernels = Extension(
    "multitrainer.fused._kernels",
    ["src/multitrainer/fused/kernels.c"],
    extra_compile_args=["-std=gnu99", "-O3", "-fno-fast-math", "-ffp-contract=off", "-fno-math-errno"],
    extra_link_args=["-fno-fast-math"],
    libraries=["m"],
    py_limited_api=True,
    optional=True,
)

setup(ext_modules=[kernels], options={"bdist_wheel": {"py_limited_api": "cp38"}})
