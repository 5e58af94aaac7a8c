#pragma once

/// Compiles a function for several instruction sets, of which the loader takes the best. Contraction is off and sums have
/// a written order, so all of them give the same bits. Not with sanitizers, whose start-up does not bear the resolvers.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SHUNT_LAYER_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SHUNT_LAYER_SANITIZED 1
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(SHUNT_LAYER_SANITIZED)
#define SHUNT_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define SHUNT_MULTIVERSION
#endif
