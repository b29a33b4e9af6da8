#include "files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "error.h"

namespace cpuc {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void wrong(const std::string& message) { throw Error(Kind::input, message); }

// A new file beside the target. Signals that end the process wait while it lives: writing an answer takes no time.
class Staged {
 public:
  explicit Staged(const fs::path& target) : target_(target.string()), path_((target.parent_path() / ".cpuc-run-XXXXXX").string()) {
    sigset_t ending;
    sigemptyset(&ending);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) sigaddset(&ending, number);
    pthread_sigmask(SIG_BLOCK, &ending, &before_);
    handle_ = ::mkostemp(path_.data(), O_CLOEXEC);
    if (handle_ < 0) fail();
    made_ = true;
    const mode_t mask = ::umask(0);
    ::umask(mask);
    ::fchmod(handle_, 0666 & ~mask);
  }
  ~Staged() {
    if (handle_ >= 0) ::close(handle_);
    if (made_) ::unlink(path_.c_str());
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  Staged(const Staged&) = delete;
  Staged& operator=(const Staged&) = delete;

  void write(const std::string& data) {
    for (size_t done = 0; done < data.size();) {
      const ssize_t count = ::write(handle_, data.data() + done, data.size() - done);
      if (count < 0 && errno != EINTR) fail();
      if (count > 0) done += static_cast<size_t>(count);
    }
    if (::fsync(handle_) != 0) fail();
  }

  void move(bool force) {
    // Unlike a rename, a link fails if another process was faster.
    if (!force && ::link(path_.c_str(), target_.c_str()) == 0) return;
    if (!force && errno == EEXIST) wrong(target_ + ": exists already; give --force to replace it");
    if (::rename(path_.c_str(), target_.c_str()) != 0) fail();
    made_ = false;
  }

 private:
  [[noreturn]] void fail() {
    const std::string reason = std::strerror(errno);
    if (handle_ >= 0) ::close(handle_);
    if (made_) ::unlink(path_.c_str());
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    handle_ = -1, made_ = false;
    wrong(target_ + ": cannot be written: " + reason);
  }

  std::string target_, path_;
  int handle_ = -1;
  bool made_ = false;
  sigset_t before_{};
};

fs::path resolved(const std::string& target) {
  std::error_code error;
  const fs::path path = fs::weakly_canonical(fs::absolute(target), error);  // through links, as any program writes
  if (error) wrong(target + ": cannot be written: " + error.message());
  return path;
}

}  // namespace

std::string read_input(const std::string& source) {
  if (source == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::ifstream file(source, std::ios::binary);
  std::error_code error;
  if (fs::is_directory(source, error)) wrong(source + ": cannot be read: " + std::strerror(EISDIR));
  if (!file) wrong(source + (errno == ENOENT ? ": no such file" : std::string(": cannot be read: ") + std::strerror(errno)));
  std::string data(std::istreambuf_iterator<char>(file), {});
  if (file.bad()) wrong(source + ": cannot be read");
  return data;
}

void check_writable(const std::string& target, bool force) {
  const fs::path path = resolved(target);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  const std::string name = path.string(), folder = path.parent_path().string();
  if (fs::is_directory(status)) wrong(name + ": is a folder; name a file");
  if (fs::exists(status) && !fs::is_regular_file(status)) wrong(name + ": is not a regular file; name another, or - for standard output");
  if (fs::exists(status) && !force) wrong(name + ": exists already; give --force to replace it");
  if (!fs::is_directory(folder, error)) wrong(folder + ": no such folder; create it first");
  if (::access(folder.c_str(), W_OK | X_OK) != 0) wrong(folder + ": no permission to write there");
}

void write_output(const std::string& target, const std::string& data, bool force) {
  if (target == "-") {
    std::cout << data << std::flush;
    if (!std::cout) wrong(std::string("standard output cannot be written: ") + std::strerror(errno));
    return;
  }
  check_writable(target, force);
  Staged staged(resolved(target));
  staged.write(data);
  staged.move(force);
}

}  // namespace cpuc
