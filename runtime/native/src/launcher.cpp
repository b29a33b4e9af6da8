// bin/cpuc-run of a package: runs the program beside it with the C library and the loader that lie in the package, so that the
// machine needs no more than a kernel. Linked statically.
//
// The loader is told nothing but the program: every file of lib/ has an RPATH of its own folder. A path in --library-path would
// be split at colons; an empty one keeps LD_LIBRARY_PATH out.
#include <sys/auxv.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

namespace {

const char* const LOADER = "/lib/ld-linux-x86-64.so.2";

// The package that holds `program`, through links; "" is the root of the file system.
std::optional<std::string> package_of(const char* program) {
  char path[PATH_MAX];
  if (program == nullptr || ::realpath(program, path) == nullptr) return std::nullopt;
  std::string folder(path);
  for (int level = 0; level < 2; ++level) {  // bin/cpuc-run
    const size_t slash = folder.rfind('/');
    if (slash == std::string::npos) return std::nullopt;
    folder.erase(slash);
  }
  if (::access((folder + LOADER).c_str(), X_OK) != 0) return std::nullopt;
  return folder;
}

}  // namespace

int main(int count, char** arguments) {
  // What was executed; /proc is not there in every container, and the name not in every way of executing a file.
  std::optional<std::string> package = package_of(reinterpret_cast<const char*>(::getauxval(AT_EXECFN)));
  if (!package) package = package_of("/proc/self/exe");
  if (!package) {
    std::fprintf(stderr, "cpuc: %s is not in the bin folder of a package, or the package is not whole: unpack it again\n",
                 count > 0 ? arguments[0] : "cpuc-run");
    return 1;
  }
  std::string loader = *package + LOADER, program = *package + "/lib/cpuc-run";
  std::string name = "cpuc-run", no_cache = "--inhibit-cache", search = "--library-path", nowhere;
  std::vector<char*> command = {name.data(), no_cache.data(), search.data(), nowhere.data(), program.data()};
  for (int i = 1; i < count; ++i) command.push_back(arguments[i]);
  command.push_back(nullptr);
  ::execv(loader.c_str(), command.data());
  std::fprintf(stderr, "cpuc: %s cannot be run: %s\n", loader.c_str(), std::strerror(errno));
  return 1;
}
