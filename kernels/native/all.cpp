// Everything that is compiled, as one unit: an operation's cpu.cpp may use another's.
#include "../decoder_step/cpu.cpp"
