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
      %i[after_save after_touch after_destroy].each do |change|
        # What was never saved can be destroyed all the same: nothing has changed.
        public_send(change) { Ksync.announce(self) unless new_record? }
      end
      # belongs_to touch: true touches as late as here, perhaps after the announcement was asked.
      before_commit { Announcement.of(self.class)&.before_committed! unless Ksync.disabled? }
    end
    class_methods { def kafka_topic = name.pluralize.underscore.tr("/", "-") }
    def kafka_payload = { id: id }
  end

  # The changes of a transaction. ActiveRecord keeps it among the transaction's records and so tells it of the end:
  # once, whatever was saved, and also where an after_commit of the application raises.
  class Announcement
    attr_reader :ended

    # That of the transaction which the model's connection is in; nil outside of any.
    def self.of(model)
      connection = model.connection_pool.active_connection?
      return unless connection && connection.current_transaction.joinable?
      # Kept with the transaction that runs the callbacks: an after_commit may begin another one before we are told.
      stack = connection.transaction_manager.instance_variable_get(:@stack)
      root = stack.reverse.find { |transaction| transaction.instance_variable_get(:@run_commit_callbacks) }
      open = root.instance_variable_get(:@ksync) || root.instance_variable_set(:@ksync, new(connection))
      open.tap { connection.add_transaction_record(open) }
    end

    def initialize(connection = nil)
      @connection, @tx, @messages, @requests = connection, SecureRandom.hex, {}, []
    end

    # Sends delay messages, by their topic and key, at once; whether Kafka has them is seen before the commit.
    def add(messages, wait: @committing)
      @messages.merge!(messages) # of each record the last counts
      raise @failure if @failure # the commit is to fail even if the exception of a save was rescued
      tell("delay", messages.values, wait: wait)
    rescue Error => error
      Ksync.log("a change is not announced: #{error.message}; going on") if Ksync.lenient? && !@failure
      @failure = error
      raise unless Ksync.lenient?
    end

    # ActiveRecord calls these. An exception of before_committed! rolls back.
    def trigger_transactional_callbacks? = true
    def before_committed!(*) = add({}, wait: @committing = true)

    def committed!(*)
      return if @ended.tap { @ended = true } # ActiveRecord 6.1 tells it for each savepoint that it was in
      tell("instant", @failure || Ksync.sent ? @messages.values : []) # after a failure the server may not know all
    rescue StandardError => error # it is committed, whatever happens here
      rest = @failure ? "nothing will bring up #{@messages.values.join(" ")}" : "the delay messages will bring it up"
      Ksync.log("a commit is not announced: #{error.message}; #{rest}")
    end

    # Also of a savepoint: its changes stay announced, as part of the transaction around it.
    def rolledback!(*)
      @connection.current_transaction.joinable? ? @connection.add_transaction_record(self) : forget
    end

    def forget
      @ended = true
      tell("forget", [], wait: false) if @link&.open?
    rescue Error # with its connection it is forgotten, too
    end

    # A connection that broke is made anew, once. It knows nothing of the transaction, so it is told all.
    private def tell(op, messages, wait: true, again: false)
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
      # Not connect, which might wait for ever.
      @socket.connect_nonblock(Socket.sockaddr_un(ENV.fetch("KSYNC_SOCKET", "/run/ksync/stream.sock")))
    end

    # After a fork it is the parent's, and after half a line, which a Timeout may leave, of no use.
    def open? = @pid == Process.pid && @line.empty? && !@socket.closed?
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

  class << self
    attr_accessor :sent
    def disabled? = ENV["KSYNC_DISABLED"] == "1"
    def lenient? = ENV["KSYNC_ON_ERROR"] == "log"
    def log(text) = (ActiveRecord::Base.logger || Logger.new($stderr)).error("ksync: #{text}")

    def announce(record)
      return if disabled?
      Announcement.of(record.class).add(messages([record, before_new_key(record)].compact))
    end

    # Delay messages for all records, acknowledged; the block; instant messages, within a transaction after its commit.
    def bulk(records)
      records = Array(records) # a relation is loaded, once; the block gets what it had
      return yield(records) if disabled? || records.empty?
      around = Announcement.of(records.first.class)
      announcement = around || Announcement.new
      announcement.add(messages(records), wait: true)
      yield(records)
    rescue Exception
      announcement.forget if announcement && !around
      raise
    ensure # the block may also be left by return or break: what it did is done
      announcement.committed! if announcement && !around && !announcement.ended
    end

    # Ksync::Error from the block: the store is away. Others, but Failed, end the program. The batch comes again.
    def work(&block)
      input, output = $stdin.dup, $stdout.dup
      $stdin.reopen(File::NULL) # neither the block nor what it runs may take our lines, or print among them
      output.sync = $stdout.reopen($stderr).sync = true
      batch = records = nil
      input.set_encoding("UTF-8").each_line do |line|
        message = JSON.parse(line)
        case message["type"]
        when nil then records << message # of our records none has a type
        when "hello" then output.puts(JSON.generate(type: "ready"))
        when "batch" then batch, records = message["id"], []
        when "cancel" then batch = nil if batch == message["id"] # another process has it now
        when "end" then batch &&= output.puts(JSON.generate(id: batch, **outcome(records, &block))) # nil again
        when "shutdown" then break
        end
      end
    end

    # Their texts, by topic and key.
    private def messages(records)
      records.to_h do |record|
        key = record.id.is_a?(Array) ? JSON.generate(record.id) : record.id&.to_s
        topic = record.class.kafka_topic
        [[topic, key], JSON.generate(topic: topic, key: key, payload: record.kafka_payload)]
      end
    end

    # What the record was where the save has changed its primary key: under the old one it is gone.
    private def before_new_key(record)
      names = Array(record.class.primary_key)
      return unless names.any? { |name| record.saved_change_to_attribute?(name) }
      key = names.to_h { |name| [name, record.attribute_before_last_save(name)] }
      return if key.value?(nil) # it is new
      record.dup.tap { |old| record.attributes.merge(key).each { |name, value| old[name] = value } }
    end

    private def outcome(records)
      said = yield(records)
      { type: "done", failed: said.is_a?(Failed) ? said.records : [] }
    rescue Error => error
      error.is_a?(Failed) ? { type: "done", failed: error.records } : { type: "backoff", ms: 5000 }
    end
  end
end
