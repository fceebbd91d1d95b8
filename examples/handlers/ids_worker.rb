#!/usr/bin/env ruby
# Prints the ids of each batch: a worker for ksync-consume --worker, one process for many batches.
# Its stdout is for answers, one JSON object a line; all else goes to stderr. It ends when it is told to, or stdin does.

require "json"

$stdin.set_encoding("UTF-8") # whatever the locale of a daemon is
$stdout.sync = true # what stays in a buffer is no answer

batch, ids, failed = nil, [], []
$stdin.each_line do |line|
  message = JSON.parse(line)
  case message["type"]
  when "hello"
    puts JSON.generate(type: "ready")
  when "batch"
    batch, ids, failed = message, [], []
  when "cancel" # another process has it now: nothing of it is written, and no answer is due
    batch = nil if batch && batch["id"] == message["id"]
  when "end"
    next unless batch
    begin
      # This line is where your store is written to; after it the batch may be called done.
      $stderr.puts "#{batch["topic"]}/#{batch["partition"]}: #{ids.join(" ")}"
      puts JSON.generate(type: "done", id: batch["id"], failed: failed)
    rescue SystemCallError # the store is away: the batch comes again
      puts JSON.generate(type: "backoff", id: batch["id"], ms: 5000)
    end
    batch = nil
  when "shutdown"
    break
  when nil # a record: none of them has a type
    next unless batch
    payload = message.fetch("payload")
    # A tombstone (nil) says by its key what was deleted.
    id = payload.nil? ? message["key"] : payload["id"]
    id.nil? ? failed << { offset: message["offset"], error: "no id", permanent: true } : ids << id
  end
end
