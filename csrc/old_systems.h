// Old versions of library functions, so that one binary runs on glibc 2.28 and GCC 8's library or
// later. Included by the files that call them.

#pragma once

#if defined(__GLIBC__) && defined(__x86_64__)
// Version 2.29 only differs in errno.
__asm__(".symver exp, exp@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver exp, exp@GLIBC_2.17");
#endif
