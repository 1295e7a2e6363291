// Everything that is compiled, as one unit: an operation's cpu.cpp may use another's.
#include "../fp8_gemm/cpu.cpp"
