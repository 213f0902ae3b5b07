#include <new>

#ifdef __GLIBCXX__
// std::vector calls it since GCC 11, but only the library of GCC 11 defines it.
namespace std {
[[noreturn]] void __throw_bad_array_new_length();
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std
#endif
