//! Number formats: ternary and five-level codebooks, packings, int8 rows, counter-based random numbers.
