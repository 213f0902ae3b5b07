// Old versions of what a newer compiler would ask of the system, so that one binary runs from glibc
// 2.28 and GCC 8's library on. Included where it is called.

#pragma once

#if defined(__GLIBC__) && defined(__x86_64__)
// The one of 2.29 differs in errno alone.
__asm__(".symver exp, exp@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver exp, exp@GLIBC_2.17");
#endif
