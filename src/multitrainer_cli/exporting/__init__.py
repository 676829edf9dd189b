"""Files for programs without multitrainer: a symbol and parameters for MXNet, and an ONNX model, checked as written.

A folder of files appears as a whole; what loads the network afterwards is tried before that, in a process that can
import neither multitrainer nor GluonCV. Reading the run and printing are left to the subcommand.
"""
