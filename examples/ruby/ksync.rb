# frozen_string_literal: true

# ksync for ActiveRecord 6.1 and later (Ruby 3): announces changes through ksync-stream --serve, works on them.
#   class Product < ActiveRecord::Base
#     include Ksync::Model # may override self.kafka_topic and kafka_payload
#   end
#   Ksync.bulk(products) { Product.where(id: products.map(&:id)).update_all(featured: true) }
#   Ksync.work { |records| ... } # all that a program for ksync-consume --worker has to do
# KSYNC_SOCKET (/run/ksync/stream.sock), KSYNC_TIMEOUT (5, in seconds); KSYNC_ON_ERROR=log: what cannot be announced is
# committed all the same; KSYNC_DISABLED=1: nothing is sent. For tests: Ksync.sent = [] collects, Ksync.sent.clear.
# What calls no callbacks is not seen and belongs into bulk: update_column(s), update_all, update_counters, increment!,
# counter caches, touch_all, delete, delete_all, insert_all, upsert_all, dependent: :delete_all or :nullify, and SQL.
%w[json logger securerandom socket active_record].each { |library| require library }

module Ksync
  class Error < StandardError; end

  # For the block of work to return, or to raise once all others are done: these records failed. To say why:
  # Failed.new(record.merge("error" => "no such category", "permanent" => true)).
  class Failed < Error
    attr_reader :records
    def initialize(*records) = @records = records.flatten.map { |record| record.slice("offset", "error", "permanent") }
  end

  module Model
    extend ActiveSupport::Concern
    included do
      # What was never saved can be destroyed all the same: nothing has changed.
      %i[after_save after_touch after_destroy].each { |on| public_send(on) { Ksync.announce(self) unless new_record? } }
      # belongs_to touch: true touches as late as here, perhaps after the announcement was asked.
      before_commit { Announcement.of(self.class)&.before_committed! }
    end
    class_methods { def kafka_topic = name.pluralize.underscore.tr("/", "-") }
    def kafka_payload = { id: id }
  end

  # The changes of a transaction, among whose records it is: so ActiveRecord tells it of the end, once, whatever may raise.
  class Announcement
    def self.of(model) # that of the transaction which its connection is in; nil outside of any
      connection = model.connection_pool.active_connection?
      return if Ksync.disabled? || !connection&.current_transaction&.joinable?
      # Kept with the transaction that runs the callbacks: an after_commit may begin another one before we are told.
      stack = connection.transaction_manager.instance_variable_get(:@stack)
      root = stack.reverse.find { |transaction| transaction.instance_variable_get(:@run_commit_callbacks) }
      open = root.instance_variable_get(:@ksync) || root.instance_variable_set(:@ksync, new(connection))
      open.tap { connection.add_transaction_record(open) }
    end

    def initialize(connection = nil)
      @connection, @tx, @messages, @requests = connection, SecureRandom.hex, {}, []
    end

    def add(messages, wait: @committing) # delay messages, sent at once; whether Kafka has them is seen before the commit
      @messages.merge!(messages) # of each record the last counts
      raise @failure if @failure # the commit is to fail even if the exception of a save was rescued
      tell("delay", messages.values, wait: wait)
    rescue Error => error
      raise @failure = error unless ENV["KSYNC_ON_ERROR"] == "log"
      @failure ||= error.tap { Ksync.log("a change is not announced: #{error.message}; going on") }
    end

    def trigger_transactional_callbacks? = true
    def before_committed!(*) = add({}, wait: @committing = true) # an exception rolls back

    def committed!(*)
      return if @ended.tap { @ended = true } # ActiveRecord 6.1 tells it for each savepoint that it was in
      tell("instant", @failure || Ksync.sent ? @messages.values : []) # after a failure the server may not know all
    rescue StandardError => error # it is committed, whatever happens here
      rest = @failure ? "nothing will bring up #{@messages.values.join(" ")}" : "the delay messages will bring it up"
      Ksync.log("a commit is not announced: #{error.message}; #{rest}")
    end

    # Also of a savepoint: its changes stay announced, as part of the transaction around it.
    def rolledback!(*)
      return @connection.add_transaction_record(self) if @connection&.current_transaction&.joinable?
      @ended = true
      tell("forget", [], wait: false) if @link&.open?
    rescue Error # with its connection it is forgotten, too
    end

    private def tell(op, messages, wait: true, again: false) # all once more, by a new connection, where one broke
      return if @messages.empty?
      return Ksync.sent.concat(messages.map { |text| JSON.parse(text).merge("op" => op) }) if Ksync.sent
      @link, @requests, messages = Link.current, [], @messages.values unless @link&.open?
      @requests.concat(@link.ask(op, @tx, messages)) unless op == "delay" && messages.empty?
      @link.wait(@requests.slice!(0..)) if wait
    rescue SystemCallError, IOError, JSON::ParserError => error
      @link&.close
      raise Error, "no connection to ksync-stream: #{error.message}; is it running?" if again
      tell(op, messages, wait: wait, again: true)
    end
  end

  # A connection to ksync-stream. Each thread (indeed each fiber) has its own, so that none reads another's answers.
  class Link
    def self.current
      link = Thread.current[:ksync_link]
      link&.open? ? link : Thread.current[:ksync_link] = new
    end

    def initialize
      @pid, @last, @requests, @line, @socket = Process.pid, 0, {}, "", Socket.new(:UNIX, :STREAM)
      @socket.connect_nonblock(Socket.sockaddr_un(ENV.fetch("KSYNC_SOCKET", "/run/ksync/stream.sock"))) # waits for nobody
    end

    def open? = @pid == Process.pid && @line.empty? && !@socket.closed? # not the parent's, nor with half a line sent
    def close = @socket.close

    def ask(op, tx, messages) # in requests of 250 or fewer: one may have 16 MiB
      count = 8_000_000.fdiv([32_000, *messages.map(&:bytesize)].max).ceil
      (messages.empty? ? [[]] : messages.each_slice(count)).map do |slice|
        request = @requests[@last += 1] = {}
        @line = %({"id":#{@last},"tx":"#{tx}","op":"#{op}","messages":[#{slice.join(",")}]}\n)
        @line = @line.byteslice(ready(:wait_writable).write_nonblock(@line)..) until @line.empty?
        read while @requests.size > 100 # a socket holds some 270 answers; the server would wait, and we for it
        request
      end
    end

    def wait(requests)
      requests.each do |request|
        read while request.empty?
        error = "ksync-stream says: #{request["error"]}"
        raise error.include?(" is not known") ? IOError : Error, error unless request["ok"]
      end
    end

    private def read
      answer = JSON.parse(ready(:wait_readable).gets || raise(EOFError, "it was closed"))
      @requests.delete(answer["id"])&.replace(answer)
    end

    private def ready(event)
      timeout = Float(ENV.fetch("KSYNC_TIMEOUT", "5"))
      return @socket if @socket.public_send(event, timeout)
      close # nobody waits for its answers now
      raise Error, "ksync-stream does not answer within #{timeout} s"
    end
  end

  singleton_class.attr_accessor :sent
  def self.disabled? = ENV["KSYNC_DISABLED"] == "1"
  def self.log(text) = (ActiveRecord::Base.logger || Logger.new($stderr)).error("ksync: #{text}")
  def self.announce(record) # within a transaction
    open = Announcement.of(record.class) || raise(Error, "no transaction is open; use bulk") unless disabled?
    open&.add(messages([record, before_new_key(record)].compact))
  end

  # Delay messages for all records, acknowledged; the block; instant messages, within a transaction after its commit.
  def self.bulk(records)
    records = Array(records) # a relation is loaded, once; the block gets what it had
    return yield(records) if disabled? || records.empty?
    (Announcement.of(records.first.class) || own = Announcement.new).add(messages(records), wait: true)
    yield(records)
  rescue Exception
    own&.rolledback!
    raise
  ensure # the block may also be left by return or break: what it did is done
    own&.committed!
  end

  # Ksync::Error from the block: the store is away. Others, but Failed, end the program. The batch comes again.
  def self.work
    input, output = $stdin.dup, $stdout.dup
    $stdin.reopen(File::NULL) # neither the block nor what it runs may take our lines, or print among them
    output.sync = $stdout.reopen($stderr).sync = true
    answer = ->(**said) { output.puts(JSON.generate(said)) } # and then there is no batch
    failed = ->(said) { said.is_a?(Failed) ? said.records : [] }
    batch = records = nil
    input.set_encoding("UTF-8").each_line do |line|
      message = JSON.parse(line)
      case message["type"]
      when nil then records << message # of our records none has a type
      when "hello" then answer[type: "ready"]
      when "batch" then batch, records = message["id"], []
      when "cancel" then batch = nil if batch == message["id"] # another process has it now
      when "end" then batch &&= answer[type: "done", id: batch, failed: failed[yield(records)]]
      when "shutdown" then break
      end
    rescue Failed => error
      batch = answer[type: "done", id: batch, failed: error.records]
    rescue Error
      batch = answer[type: "backoff", id: batch, ms: 5000]
    end
  end

  private_class_method def self.messages(records) # their texts, by topic and key
    records.to_h do |record|
      named = { topic: record.class.kafka_topic, key: record.id.is_a?(Array) ? JSON.generate(record.id) : record.id&.to_s }
      [named, JSON.generate(**named, payload: record.kafka_payload)]
    end
  end

  private_class_method def self.before_new_key(record) # what it was, where the save has changed its primary key
    names = Array(record.class.primary_key)
    key = names.to_h { |name| [name, record.attribute_before_last_save(name)] }
    return if key.value?(nil) || names.none? { |name| record.saved_change_to_attribute?(name) } # it is new, or as before
    record.dup.tap { |old| record.attributes.merge(key).each { |name, value| old[name] = value } }
  end
end
