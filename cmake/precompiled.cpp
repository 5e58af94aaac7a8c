// A target with a precompiled header needs a source; what counts is the header.
