#include "files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
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

// As runtime/files.py calls them, whose next command removes what a process that was killed has left.
const std::string prefix = ".cpuc-staged-";

// What a signal that ends the process removes, on whatever thread it comes.
char staged_file[PATH_MAX], staged_folder[PATH_MAX];

void end_by(int number) {
  ::unlink(staged_file);
  ::rmdir(staged_folder);
  ::signal(number, SIG_DFL);
  ::raise(number);
}

// A new file in a folder of its own beside the target, which is locked for as long as this lives.
class Staged {
 public:
  explicit Staged(const fs::path& target) : target_(target.string()) {
    std::string folder = (target.parent_path() / (prefix + "XXXXXX")).string();
    if (folder.size() + sizeof "/staged" > sizeof staged_file) fail(ENAMETOOLONG);
    if (::mkdtemp(folder.data()) == nullptr) fail(errno);
    std::strcpy(staged_folder, folder.c_str());
    std::strcpy(staged_file, (folder + "/staged").c_str());
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
      if (::signal(number, end_by) == SIG_IGN) ::signal(number, SIG_IGN);  // as under nohup
    }
    lock_ = ::open(staged_folder, O_RDONLY | O_CLOEXEC);
    if (lock_ >= 0) ::flock(lock_, LOCK_SH);  // where there are no locks, nothing is swept either
    handle_ = ::open(staged_file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  }
  ~Staged() {
    if (handle_ >= 0) ::close(handle_);
    ::unlink(staged_file);
    ::rmdir(staged_folder);
    if (lock_ >= 0) ::close(lock_);
  }
  Staged(const Staged&) = delete;
  Staged& operator=(const Staged&) = delete;

  void write(const std::string& data) {
    if (handle_ < 0) fail(errno);
    for (size_t done = 0; done < data.size();) {
      const ssize_t count = ::write(handle_, data.data() + done, data.size() - done);
      if (count < 0 && errno != EINTR) fail(errno);
      if (count > 0) done += static_cast<size_t>(count);
    }
    if (::fsync(handle_) != 0) fail(errno);
  }

  void move(bool force) {
    // Unlike a rename, a link fails if another process was faster.
    if (!force && ::link(staged_file, target_.c_str()) == 0) return;
    if (!force) check_writable(target_, false);  // which it was, or the file system has no links
    if (::rename(staged_file, target_.c_str()) != 0) fail(errno);
  }

 private:
  [[noreturn]] void fail(int error) const { wrong(target_ + ": cannot be written: " + std::strerror(error)); }

  std::string target_;
  int handle_ = -1, lock_ = -1;
};

// Through links, also those to nothing yet, as any program writes.
fs::path resolved(const std::string& target) {
  std::error_code error;
  fs::path path = fs::absolute(target, error);
  constexpr int most_links = 40;
  for (int i = 0; i < most_links && !error && fs::is_symlink(fs::symlink_status(path, error)); ++i)
    path = path.parent_path() / fs::read_symlink(path, error);
  path = fs::weakly_canonical(path, error);
  if (error) wrong(target + ": cannot be written: " + error.message());
  return path;
}

}  // namespace

std::string read_input(const std::string& source) {
  if (source == "-") {
    std::string data;
    std::array<char, 1 << 16> piece;
    for (ssize_t count = 0; (count = ::read(STDIN_FILENO, piece.data(), piece.size())) != 0;) {
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) wrong(std::string("standard input cannot be read: ") + std::strerror(errno));
      data.append(piece.data(), static_cast<size_t>(count));
    }
    return data;
  }
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
