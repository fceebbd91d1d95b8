#!/usr/bin/env ruby
# Prints the ids of a batch: a handler for ksync-consume.
#
# Exit status: 0 done; 65 a record that will never work; 75 the store is away, the same batch comes again later; an
# exception makes it 1, and the batch comes again, too.

require "json"

$stdin.set_encoding("UTF-8") # whatever the locale of a daemon is

source = ""
ids = []
$stdin.each_line do |line| # to the end: a batch that was not read is not done
  record = JSON.parse(line)
  source = "#{record.fetch("topic")}/#{record.fetch("partition")}"
  payload = record.fetch("payload")
  # A tombstone (nil) says by its key what was deleted.
  id = payload.nil? ? record["key"] : payload["id"]
  if id.nil?
    warn "offset #{record["offset"]}: no id"
    exit 65
  end
  ids << id
end

begin
  # These lines are where your store is written to.
  $stdout.puts "#{source}: #{ids.join(" ")}"
  $stdout.flush
rescue SystemCallError => error
  warn "the store is away: #{error.message}"
  exit! 75 # exit would try to flush once more
end
