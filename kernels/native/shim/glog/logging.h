// The macros of glog that OneFlow's headers use: the wheel contains neither glog's header nor its symbols.
// As with glog, a failed check prints its source line and condition on stderr and aborts.
#pragma once
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

namespace graph_train_log {

enum Severity { INFO = 0, WARNING = 1, ERROR = 2, FATAL = 3 };

class Message {
 public:
  Message(Severity severity, const char* file, int line) : severity_(severity) { text_ << file << ":" << line << ": "; }
  ~Message() {
    if (severity_ >= WARNING) std::cerr << text_.str() << std::endl;
    if (severity_ == FATAL) std::abort();
  }
  std::ostream& stream() { return text_; }

 private:
  Severity severity_;
  std::ostringstream text_;
};

// Binds weaker than << and stronger than ?:, so that a passed check costs nothing.
struct Voidify {
  void operator&(std::ostream&) {}
};

}  // namespace graph_train_log

#define GT_LOG_STREAM(severity) graph_train_log::Message(graph_train_log::severity, __FILE__, __LINE__).stream()
#define LOG(severity) GT_LOG_STREAM(severity)
#define LOG_IF(severity, condition) !(condition) ? (void)0 : graph_train_log::Voidify() & GT_LOG_STREAM(severity)
#define VLOG(level) LOG_IF(INFO, false)
#define CHECK(condition) LOG_IF(FATAL, !(condition)) << "check failed: " #condition " "
#define CHECK_EQ(a, b) CHECK((a) == (b))
#define CHECK_NE(a, b) CHECK((a) != (b))
#define CHECK_LT(a, b) CHECK((a) < (b))
#define CHECK_LE(a, b) CHECK((a) <= (b))
#define CHECK_GT(a, b) CHECK((a) > (b))
#define CHECK_GE(a, b) CHECK((a) >= (b))
#define CHECK_STREQ(a, b) CHECK(std::string(a) == std::string(b))
#define CHECK_STRNE(a, b) CHECK(std::string(a) != std::string(b))
#define DCHECK(condition) CHECK(condition)

template<typename T>
T graph_train_check_notnull(T pointer, const char* text) {
  CHECK(pointer != nullptr) << text;
  return pointer;
}
#define CHECK_NOTNULL(pointer) graph_train_check_notnull((pointer), #pointer)
