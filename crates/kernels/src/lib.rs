//! CPU inner loops: a scalar twin and SIMD tiers behind one dispatch table, and the thread pool.
