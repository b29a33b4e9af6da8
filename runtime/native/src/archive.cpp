#include "archive.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "error.h"
#include "text.h"

namespace cpuc {
namespace {

const std::string top = "cpuc";
constexpr uint64_t max_directory = 16 << 20;
// Of a plain file that its owner may write. Other attributes may say that a member is a folder: then torch reads nothing.
constexpr uint64_t attributes = 0644U << 16;
constexpr uint64_t unknown = 0xFFFFFFFF;  // the value is in the extra field for large files
constexpr size_t end_size = 22, end64_size = 56, locator_size = 20, central_size = 46, local_size = 30;
// Flags, method, time, date, checksum, packed size, size, length of the name: the same bytes in both headers.
constexpr size_t shared_size = 22, central_shared = 8, local_shared = 6;

struct Entry {
  std::string name, header, extra;
  uint64_t size, packed, offset;
  bool plain, file;
};

struct Directory {
  uint64_t place, count;
  std::string bytes;
};

uint64_t number(const std::string& data, size_t at, size_t width) {
  uint64_t value = 0;
  for (size_t i = width; i-- > 0;) value = value << 8 | static_cast<unsigned char>(data[at + i]);
  return value;
}

Error bundle_error(const File& file, const std::string& message) { return Error(Kind::bundle, file.path() + ": " + message); }

Error damaged(const File& file, const std::string& name) {
  return bundle_error(file, "member " + in_quotes(name, true) + " is damaged: compile or copy it again");
}

// A record that the file's size has room for; a file that shrinks meanwhile gives zeros.
std::string record(const File& file, uint64_t offset, size_t size) {
  std::string data = file.read(offset, size);
  data.resize(size, '\0');
  return data;
}

Directory read_directory(const File& file) {
  const Error broken = bundle_error(file, "not a cpuc bundle, or one that is cut short: compile or copy it again");
  if (file.size() < end_size) throw broken;
  uint64_t end = file.size() - end_size;
  const std::string last = record(file, end, end_size);
  uint64_t count = number(last, 10, 2), size = number(last, 12, 4), place = number(last, 16, 4);
  if (last.compare(0, 4, "PK\5\6") != 0 || number(last, 4, 4) != 0 || number(last, 8, 2) != count || number(last, 20, 2) != 0)
    throw broken;
  const bool room = end >= locator_size + end64_size;
  const std::string locator = room ? record(file, end - locator_size, locator_size) : "";
  if (room && locator.compare(0, 4, "PK\6\7") == 0) {
    end -= locator_size + end64_size;
    const std::string wide = record(file, end, end64_size);
    const uint64_t every = number(wide, 24, 8), wide_size = number(wide, 40, 8), wide_place = number(wide, 48, 8);
    const bool same = (count == every || count == 0xFFFF) && (size == wide_size || size == unknown) &&
                      (place == wide_place || place == unknown);
    if (wide.compare(0, 4, "PK\6\6") != 0 || number(wide, 4, 8) != 44 || number(wide, 16, 8) != 0 ||
        every != number(wide, 32, 8) || number(locator, 4, 4) != 0 || number(locator, 8, 8) != end ||
        number(locator, 16, 4) != 1 || !same)
      throw broken;
    count = every, size = wide_size, place = wide_place;
  }
  if (place > end || size != end - place) throw broken;
  if (size > max_directory)
    throw bundle_error(file, "its list of members takes " + std::to_string(size) + " bytes: the bundle is damaged");
  return {place, count, file.read(place, size)};
}

std::vector<Entry> entries(const File& file, const Directory& directory) {
  const std::string& bytes = directory.bytes;
  std::vector<Entry> found;
  size_t at = 0;
  for (uint64_t i = 0; i < directory.count; ++i) {
    if (bytes.size() - at < central_size) throw damaged(file, "the list of them");
    const std::string line = bytes.substr(at, central_size);
    at += central_size;
    const size_t names = number(line, 28, 2), extras = number(line, 30, 2), comment = number(line, 32, 2);
    const std::string name = bytes.substr(at, names);
    if (line.compare(0, 4, "PK\1\2") != 0 || names + extras + comment > bytes.size() - at || comment != 0 ||
        number(line, 34, 2) != 0)
      throw damaged(file, name);
    const uint64_t packed = number(line, 20, 4), size = number(line, 24, 4);
    const bool plain = number(line, 8, 4) == 0 && packed == size;  // neither flags nor a method
    found.push_back({name, line.substr(central_shared, shared_size), bytes.substr(at + names, extras), size, packed,
                     number(line, 42, 4), plain, number(line, 36, 2) == 0 && number(line, 38, 4) == attributes});
    at += names + extras;
  }
  if (at != bytes.size()) throw bundle_error(file, "its list of members holds more than its entries: do not use this file");
  return found;
}

// `values`, those of which that need 64 bits taken from the extra fields.
std::vector<uint64_t> wide(const File& file, const std::string& extra, const std::string& name, std::vector<uint64_t> values) {
  std::string large;
  for (size_t at = 0; at < extra.size();) {
    const uint64_t kind = extra.size() - at >= 4 ? number(extra, at, 2) : 0;
    const size_t size = kind != 0 ? number(extra, at + 2, 2) : 0;
    const bool is_large = kind == 0x0001, is_padding = kind == 0x4246;
    if ((!is_large && !is_padding) || size > extra.size() - at - 4 || (is_large && !large.empty())) throw damaged(file, name);
    if (is_large) large = extra.substr(at + 4, size);
    at += 4 + size;
  }
  const auto missing = static_cast<size_t>(std::count(values.begin(), values.end(), unknown));
  if (large.size() != 8 * missing) throw damaged(file, name);
  size_t next = 0;
  for (uint64_t& value : values) {
    if (value == unknown) value = number(large, 8 * next++, 8);
  }
  return values;
}

// A member's name below the top folder. torch looks members up without regard to case.
std::string checked_name(const File& file, const std::string& raw, std::set<std::string>& known) {
  bool odd = raw.compare(0, top.size() + 1, top + "/") != 0;
  std::string lower;
  for (const char letter : raw) {
    odd = odd || letter < 0x20 || letter > 0x7e || std::strchr("\\:*?\"<>|", letter) != nullptr;
    lower += letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
  }
  for (size_t start = 0; start <= raw.size();) {
    const size_t stop = std::min(raw.find('/', start), raw.size());
    const std::string part = raw.substr(start, stop - start);
    odd = odd || part.empty() || part == "." || part == "..";
    start = stop + 1;
  }
  if (odd || !known.insert(lower).second)
    throw bundle_error(file, "member " + in_quotes(raw, true) + " is misplaced or there twice: do not use this file");
  return raw.substr(top.size() + 1);
}

Member located(const File& file, const Entry& entry, const std::string& name, uint64_t expected) {
  const std::vector<uint64_t> values = wide(file, entry.extra, name, {entry.size, entry.packed, entry.offset});
  if (values[2] != expected || !entry.file) throw damaged(file, name);
  const std::string data = file.read(expected, local_size + entry.name.size());
  if (data.size() < local_size + entry.name.size() || data.compare(0, 4, "PK\3\4") != 0 ||
      data.compare(local_shared, shared_size, entry.header) != 0 || data.compare(local_size, std::string::npos, entry.name) != 0)
    throw damaged(file, name);
  const uint64_t start = expected + data.size();
  const size_t extras = number(data, 28, 2);
  const std::string extra = file.read(start, extras);
  if (extra.size() < extras) throw damaged(file, name);
  const std::vector<uint64_t> own = wide(file, extra, name, {entry.size, entry.packed});
  if (own[0] != values[0] || own[1] != values[1] || values[0] != values[1]) throw damaged(file, name);
  return {name, start + extras, values[0]};
}

}  // namespace

File::File(std::string path) : path_(std::move(path)) {
  // Opening a pipe would wait for its writer.
  const int opened = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  // Not in the place of a standard stream that is closed, which libraries write to, and load_ipex too.
  handle_ = opened < 0 ? opened : ::fcntl(opened, F_DUPFD_CLOEXEC, 3);
  if (opened >= 0) ::close(opened);
  if (handle_ < 0 && errno == ENOENT) throw Error(Kind::bundle, path_ + ": no such file");
  struct stat facts {};
  if (handle_ < 0 || ::fstat(handle_, &facts) != 0) {
    const std::string reason = std::strerror(errno);
    if (handle_ >= 0) ::close(handle_);
    throw Error(Kind::bundle, path_ + ": cannot be read: " + reason);
  }
  if (!S_ISREG(facts.st_mode)) {
    ::close(handle_);
    throw Error(Kind::bundle, path_ + ": cannot be read: not a regular file");
  }
  size_ = static_cast<uint64_t>(facts.st_size);
}

File::~File() { ::close(handle_); }

std::string File::read(uint64_t offset, uint64_t size) const {
  if (offset >= size_) return "";
  std::string data(std::min(size, size_ - offset), '\0');
  data.resize(read_into(data.data(), offset, data.size()));
  return data;
}

size_t File::read_into(char* buffer, uint64_t offset, size_t size) const {
  size_t done = 0;
  while (done < size) {
    const ssize_t count = ::pread(handle_, buffer + done, size - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw Error(Kind::bundle, path_ + ": cannot be read: " + std::strerror(errno));
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

std::vector<Member> list_members(const File& file, const std::string& needed) {
  const Directory directory = read_directory(file);
  const std::vector<Entry> all = entries(file, directory);
  const std::string full = top + "/" + needed;
  if (std::none_of(all.begin(), all.end(), [&](const Entry& entry) { return entry.name == full; }))
    throw bundle_error(file, "not a cpuc bundle: it has no manifest.json; make one with 'cpuc compile'");
  std::vector<Member> members;
  std::set<std::string> known;
  uint64_t expected = 0;
  for (const Entry& entry : all) {
    const std::string name = checked_name(file, entry.name, known);
    if (!entry.plain)
      throw bundle_error(file, "member " + in_quotes(name, true) + " is compressed or encrypted: do not use this file");
    const Member member = located(file, entry, name, expected);
    if (member.offset > directory.place || member.size > directory.place - member.offset) throw damaged(file, name);
    expected = member.offset + member.size;
    members.push_back(member);
  }
  if (expected != directory.place) throw bundle_error(file, "holds bytes that belong to no member: do not use this file");
  return members;
}

}  // namespace cpuc
