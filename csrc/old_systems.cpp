#include <new>

#ifdef __GLIBCXX__
// Vectors compiled since GCC 11 call it, and only the library of GCC 11 has it.
namespace std {
[[noreturn]] void __throw_bad_array_new_length();
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
#endif
